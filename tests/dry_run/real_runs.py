"""Small runs with numbers, on real processes, and the bytes of what they hold: the reference of the dry run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from parallel_runs import HYBRID, VOCABULARY, Motifs, layout

from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.held_memory import HeldMemory
from megatron_prism.platform.process_groups import session
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.dry_step import filling_micro_batches
from megatron_prism.training.stage import Train
from megatron_prism.training.training_run import build_trainer

DENSE = Architecture("granite", VOCABULARY + 1, 32, 4, 48, 4, 2, 8)
TWO = {
    "tp2 sp": {"parallel": layout(tp=2, sp=True)},
    "pp2 tied": {"parallel": layout(pp=2)},
    "pp2 vp2": {"parallel": layout(pp=2, vp=2)},
    "cp2": {"parallel": layout(cp=2)},
    "dp2 bf16": {"parallel": layout(dp=2), "dtype": "bf16"},
    "dp2 attention": {"parallel": layout(dp=2), "dtype": "bf16", "trainable": "attention"},
    "dp2 plain": {"parallel": replace(layout(dp=2), use_distributed_optimizer=False), "dtype": "bf16"},
    "hybrid tp2": {"parallel": layout(tp=2, sp=True), "architecture": HYBRID, "dtype": "bf16"},
    "hybrid pp2": {"parallel": layout(pp=2), "architecture": HYBRID},
}
ONE = {
    f"{name} {recompute} {dtype}": {"architecture": model, "recompute": recompute, "dtype": dtype}
    for name, model in {"dense": DENSE, "hybrid": HYBRID}.items()
    for recompute in ("none", "selective", "full")
    for dtype in ("fp32", "bf16")
}


def stage(changes: dict[str, Any], length: int = 64) -> Train:
    fields = {
        "architecture": DENSE,
        "parallel": layout(),
        "mixture": "shoebox-mcs",
        "backend": "torch",
    } | changes
    parallel = fields["parallel"]
    # As many micro-batches as the dry run takes, whose inputs are counted, too.
    count = filling_micro_batches(parallel, 8)
    return Train(batch=BatchConfig(length, 1, count * parallel.data_parallel_size), **fields)


def held(config: Train) -> dict[str, int]:
    """The bytes of this rank's weights, gradients, optimizer, and of what the first forward passes keep."""
    with session(config.parallel, 1):
        trainer = build_trainer(config, initialize=True)
        kept = [0]
        data = Motifs(config.batch.sequence_length)
        with HeldMemory() as memory:

            def ended(*_: Any) -> None:
                kept[0] = max(kept[0], memory.bytes())

            for model in trainer.models:
                model.register_forward_hook(ended)
            trainer.step(data, 0, 1e-3)
        parameters = [each for model in trainer.models for each in model.parameters()]
        states: list[torch.Tensor] = []
        for part in trainer.optimizer.chained_optimizers:
            for group in part.optimizer.param_groups:
                for parameter in group["params"]:
                    states += [parameter, *part.optimizer.state[parameter].values()]
        gradients = [each.main_grad for each in parameters if each.requires_grad]
        owned = {each.untyped_storage().data_ptr() for each in parameters}
        return {
            "parameters": sum(each.numel() for each in parameters),
            "weights": storages(parameters),
            "gradients": storages(gradients),
            "optimizer": storages([t for t in states if t.untyped_storage().data_ptr() not in owned]),
            "activations": kept[0],
        }


def storages(tensors: list[torch.Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def main(folder: Path) -> None:
    """On two ranks: the bytes of every layout, of both."""
    found = {name: held(stage(changes)) for name, changes in TWO.items()}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
