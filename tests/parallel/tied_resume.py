"""Worker of test_tied_resume.py: a tied hybrid is saved and resumed under PP 2, with and without the repair."""

from __future__ import annotations

from pathlib import Path

import torch
from parallel_runs import VOCABULARY, Motifs, layout, write_results

from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import session
from megatron_prism.training import optimizer as optimizers
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

# The first bucket ends with Mamba's vectors of 8 numbers, so it is padded; the tied embedding has the second bucket.
TIED = Architecture(
    "granitemoehybrid", VOCABULARY, 32, 4, 64, 4, 2, 8, position_embedding="none", hybrid_pattern="M-M*",
    mamba_num_heads=8, mamba_head_dim=8, mamba_state_dim=8, initializer_range=0.1,
)  # fmt: skip


def trainer() -> Trainer:
    return Trainer(
        TIED, layout(pp=2), BatchConfig(32, 2, 4), OptimizerSettings(eps=1e-8), dtype=torch.float32
    )


def losses(run: Trainer, first: int, end: int) -> list[float]:
    return [run.step(Motifs(32), 4 * step, 1e-2)[0] for step in range(first, end)]


def unbroken_and_resumed(checkpoint: Path) -> dict[str, list[float]]:
    with session(layout(pp=2), seed=5):
        run = trainer()
        losses(run, 0, 2)
        save_checkpoint(checkpoint, run.models, run.optimizer, TrainingState(2, 8))
        unbroken = losses(run, 2, 5)
    with session(layout(pp=2), seed=6):
        run = trainer()
        load_checkpoint(checkpoint, run.models, run.optimizer)
        return {"unbroken": unbroken, "resumed": losses(run, 2, 5)}


def main(folder: Path) -> None:
    results = {"repaired": unbroken_and_resumed(folder / "repaired")}
    optimizers.count_inner_padding = lambda optimizer: None
    results["as upstream"] = unbroken_and_resumed(folder / "as_upstream")
    write_results(folder, results)
