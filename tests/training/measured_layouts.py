"""Worker of test_measurements.py: one step under each layout; losses of sources and norms of components."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from parallel_runs import HYBRID, Motifs, layout, write_results

from megatron_prism.models.checkpoint_io import load_weights
from megatron_prism.platform.process_groups import session
from megatron_prism.training.checkpoint import TrainingState, save_checkpoint
from megatron_prism.training.component_norms import ComponentNorms
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

LENGTH, ROWS, SOURCES = 32, 8, 3
LAYOUTS = {
    1: {"one": layout()},
    2: {"dp2": layout(dp=2), "tp2sp": layout(tp=2, sp=True), "pp2": layout(pp=2), "cp2": layout(cp=2)},
}


class Sourced:
    """Samples of three sources; the second one appears least, and the third is padded."""

    numbers = (0, 2, 0, 1, 2, 0, 2, 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample, source = Motifs(LENGTH)[index], self.numbers[index]
        used = LENGTH // 2 if source == 2 else LENGTH
        return sample | {"dataset_id": source, "loss_mask": (torch.arange(LENGTH) < used).float()}


def main(folder: Path) -> None:
    world = int(os.environ["WORLD_SIZE"])
    found: dict[str, Any] = {}
    for name, parallel in LAYOUTS[world].items():
        with session(parallel, seed=5):
            run = Trainer(
                HYBRID, parallel, BatchConfig(LENGTH, 2, ROWS), OptimizerSettings(), dtype=torch.float32
            )
            if world == 1:
                save_checkpoint(folder / "initial", run.models, run.optimizer, TrainingState())
            else:
                load_weights(run.models, folder / "initial")
                run.optimizer.reload_model_params()
            run.source_count = SOURCES
            norms, measured = ComponentNorms(run.models, run.optimizer), {}
            loss, grad_norm = run.step(
                Sourced(), 0, 1e-3, lambda *_, m=measured, n=norms: m.update(n.measure()) is None
            )
            found[name] = {
                "loss": loss,
                "grad_norm": grad_norm,
                "sources": run.sums.by_source,
                "norms": measured,
                "seconds": run.seconds,
            }
    write_results(folder, found)
