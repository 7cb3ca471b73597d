"""Two ranks with an imitated GPU each: training, a checkpoint and its resumption in another layout, and the counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from parallel_runs import HYBRID, VOCABULARY, Motifs, layout

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import load_weights
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.parameter_count import count_parameters
from megatron_prism.training.trainer import Trainer

MODELS = {"dense": Architecture("granite", VOCABULARY, 32, 2, 48, 4, 2, 8), "hybrid": HYBRID}
ONE = layout()
TWO = {"tp2sp": layout(tp=2, sp=True), "pp2": layout(pp=2), "cp2": layout(cp=2), "dp2": layout(dp=2)}
LENGTH, BATCH, LR, HALF, STEPS = 16, 4, 1e-2, 1, 2


def trainer(kind: str, parallel: ParallelConfig) -> Trainer:
    batch = BatchConfig(LENGTH, 2, BATCH)
    return Trainer(
        MODELS[kind], parallel, batch, OptimizerSettings(eps=1e-8), dtype=torch.float32, backend="torch"
    )


def losses(run: Trainer, first: int, last: int) -> list[float]:
    return [run.step(Motifs(LENGTH), step * BATCH, LR)[0] for step in range(first, last)]


def alone(folder: Path) -> dict[str, Any]:
    """One process: the first weights, a checkpoint in the middle, and what the two ranks must find."""
    found = {}
    for kind in MODELS:
        with session(ONE, seed=5):
            run = trainer(kind, ONE)
            save_checkpoint(folder / kind / "first", run.models, run.optimizer, TrainingState())
            before = losses(run, 0, HALF)
            save_checkpoint(folder / kind / "half", run.models, run.optimizer, TrainingState(HALF))
            after = losses(run, HALF, STEPS)
            found[kind] = _found(run, before + after, after)
    return found


def together(folder: Path) -> dict[str, dict[str, Any]]:
    """Two ranks: the same in every layout, from the first weights, and from the checkpoint of the one process."""
    return {kind: {name: _both(kind, TWO[name], folder / kind) for name in TWO} for kind in MODELS}


def _both(kind: str, parallel: ParallelConfig, folder: Path) -> dict[str, Any]:
    with session(parallel, seed=6):
        run = trainer(kind, parallel)
        load_weights(run.models, folder / "first")
        run.optimizer.reload_model_params()
        whole = losses(run, 0, STEPS)
        resumed = trainer(kind, parallel)
        load_checkpoint(folder / "half", resumed.models, resumed.optimizer)
        return _found(run, whole, losses(resumed, HALF, STEPS))


def _found(run: Trainer, whole: list[float], resumed: list[float]) -> dict[str, Any]:
    return {
        "losses": whole,
        "resumed": resumed,
        "validation": run.evaluate(Motifs(LENGTH), 1),
        "parameters": count_parameters(run.models),
    }
