"""Attention-only training of small models; `main` is the worker of test_extension_training.py with two processes.

Each rank writes its own results, because a pipeline stage knows its own layers only.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_imitation.fused_adam import fused_adam
from parallel_runs import HYBRID, VOCABULARY, Motifs

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import load_weights, unwrap
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

STEPS, BROKEN_AFTER, LENGTH, BATCH = 6, 3, 32, 4
DENSE = Architecture("granite", VOCABULARY, 32, 4, 64, 4, 2, 8, residual_multiplier=0.5)
# Attention in both stages, behind a Mamba layer in the second.
HYBRID_TWICE = Architecture(**(vars(HYBRID) | {"hybrid_pattern": "*-M*"}))
MODELS = {"dense": DENSE, "hybrid": HYBRID, "hybrid-twice": HYBRID_TWICE}
TP, PP, DP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size"


@dataclass(frozen=True)
class Case:
    """A model, by its name in `MODELS`, under a layout; `broken` runs are also interrupted and resumed.

    `adam` names an implementation of `gpu_imitation.fused_adam`.
    """

    kind: str
    sizes: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    broken: bool = False
    adam: str = "torch"


CASES = {
    "dense-dp2": Case("dense", {DP: 2}, broken=True),
    "dense-dp2-plain": Case("dense", {DP: 2, "use_distributed_optimizer": False}, broken=True),
    "dense-tp2sp-recompute": Case("dense", {TP: 2, "sequence_parallel": True}, {"recompute": "full"}),
    "dense-pp2-tied": Case("dense", {PP: 2}, broken=True),
    "hybrid-pp2-idle-stage": Case("hybrid", {PP: 2}, broken=True),
    "hybrid-pp2-idle-stage-bf16": Case("hybrid", {PP: 2}, {"dtype": torch.bfloat16}, broken=True),
    "hybrid-pp2-idle-stage-te": Case("hybrid", {PP: 2}, broken=True, adam="te"),
    "hybrid-tp2": Case("hybrid", {TP: 2}),
    "hybrid-twice-pp2-recompute": Case("hybrid-twice", {PP: 2}, {"recompute": "full"}),
}


def trainer(architecture: Architecture, parallel: ParallelConfig, **settings: Any) -> Trainer:
    """A trainer of attention only, in fp32, unless `fields` change that."""
    batch = BatchConfig(LENGTH, micro_batch_size=1, global_batch_size=BATCH)
    fields = {"trainable": "attention", "dtype": torch.float32} | settings
    return Trainer(architecture, parallel, batch, OptimizerSettings(eps=1e-8), **fields)


def steps(run: Trainer, first: int, last: int) -> list[tuple[float, float]]:
    return [run.step(Motifs(LENGTH), i * BATCH, 1e-2) for i in range(first, last)]


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    state = unwrap(run.models[0]).state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def save_start(kind: str, folder: Path) -> None:
    """Fresh weights of a model, for every layout to start from."""
    with session(seed=5):
        run = trainer(MODELS[kind], ParallelConfig())
        save_checkpoint(folder / f"{kind}-start", run.models, run.optimizer, TrainingState())


def train(folder: Path, name: str, case: Case) -> dict[str, Any]:
    """Losses and gradient norms of an uninterrupted and of a resumed run, and the tensors of this rank that changed."""
    parallel, saved = ParallelConfig(**case.sizes), folder / f"{name}-halfway"
    with session(parallel, seed=5):
        run = trainer(MODELS[case.kind], parallel, **case.settings)
        load_weights(run.models, folder / f"{case.kind}-start")
        run.optimizer.reload_model_params()
        before = weights(run)
        unbroken = steps(run, 0, BROKEN_AFTER)
        if case.broken:
            save_checkpoint(saved, run.models, run.optimizer, TrainingState(BROKEN_AFTER))
        unbroken += steps(run, BROKEN_AFTER, STEPS)
        after = weights(run)
        held = sum(len(group["params"]) for group in run.optimizer.param_groups)
    found = {
        "unbroken": unbroken,
        "changed": {name: not torch.equal(before[name], after[name]) for name in before},
        "in_optimizer": held,
    }
    if case.broken:
        with session(parallel, seed=6):
            run = trainer(MODELS[case.kind], parallel, **case.settings)
            found["resumed"] = resume(run, saved)
            found["same_weights"] = all(torch.equal(after[key], value) for key, value in weights(run).items())
    return found


def resume(run: Trainer, saved: Path) -> list[tuple[float, float]]:
    """The rest of a run, from its checkpoint, which another layout may have written."""
    return steps(run, load_checkpoint(saved, run.models, run.optimizer).step, STEPS)


def main(folder: Path) -> None:
    results = {}
    for name, case in CASES.items():
        with fused_adam(case.adam):
            results[name] = train(folder, name, case)
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
