"""Training with and without overlapped communication on two processes; `main` is the worker of test_kernels.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from parallel_runs import HYBRID, VOCABULARY, Motifs, layout, write_results

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import unwrap
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training import optimizer, parameter_gather
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import Trainer

LENGTH, BATCH, BROKEN_AFTER, STEPS = 16, 8, 2, 4
DENSE = Architecture("granite", VOCABULARY, 32, 4, 48, 4, 2, 8)
# Small enough that every layer has several buckets, whose ends fall inside layers.
GRADS = KernelSettings(overlap_grad_reduce=True, bucket_size=1000)
BOTH = KernelSettings(overlap_grad_reduce=True, overlap_param_gather=True, bucket_size=1000)
OFF = KernelSettings(overlap_grad_reduce=False)


@dataclass(frozen=True)
class Case:
    architecture: Architecture
    parallel: ParallelConfig
    kernels: KernelSettings
    settings: dict[str, Any] = field(default_factory=dict)


BF16 = {"dtype": torch.bfloat16}
CASES = {
    "dense": Case(DENSE, layout(dp=2), BOTH),
    "dense-cp2": Case(DENSE, layout(cp=2), BOTH, BF16),
    "hybrid-recompute": Case(HYBRID, layout(dp=2), BOTH, {"recompute": "full"} | BF16),
}


def trainer(case: Case, kernels: KernelSettings) -> Trainer:
    batch = BatchConfig(LENGTH, 2, BATCH)
    fields = {"dtype": torch.float32, "backend": "torch"} | case.settings
    return Trainer(
        case.architecture,
        case.parallel,
        batch,
        OptimizerSettings(eps=1e-8, clip_grad=0.0),
        kernels=kernels,
        **fields,
    )


def journey(case: Case, kernels: KernelSettings, folder: Path, *, resumes: bool = True) -> dict[str, Any]:
    """Losses with an evaluation, a checkpoint and a refused step between, those of the resumed run, and the weights."""
    found: dict[str, Any] = {}
    with session(case.parallel, seed=5):
        run = trainer(case, kernels)
        found["first"] = [run.step(Motifs(LENGTH), i * BATCH, 1e-2) for i in range(BROKEN_AFTER)]
        found["evaluation"] = run.evaluate(Motifs(LENGTH), 1)
        save_checkpoint(folder, run.models, run.optimizer, TrainingState(BROKEN_AFTER))
        found["refused"] = run.step(Motifs(LENGTH), 0, 1e-2, lambda loss, norm: False)
        found["then"] = [run.step(Motifs(LENGTH), i * BATCH, 1e-2) for i in range(BROKEN_AFTER, STEPS)]
        run.finish_update()
        found["weights"] = [each.double().abs().sum().item() for each in unwrap(run.models[0]).parameters()]
    if not resumes:
        return found
    with session(case.parallel, seed=6):
        run = trainer(case, kernels)
        load_checkpoint(folder, run.models, run.optimizer)
        found["resumed"] = [run.step(Motifs(LENGTH), i * BATCH, 1e-2) for i in range(BROKEN_AFTER, STEPS)]
    return found


def read_too_early(folder: Path) -> dict[str, Any]:
    """Negative control: a checkpoint of weights that were not gathered after the last step."""
    case, gather = CASES["dense"], parameter_gather.finish
    parameter_gather.finish = lambda models: None
    try:
        return journey(case, case.kernels, folder / "early", resumes=False)
    finally:
        parameter_gather.finish = gather


def save_without_padding(folder: Path) -> dict[str, Any]:
    """Negative control: a checkpoint as upstream writes it."""
    correct = optimizer.count_inner_padding
    optimizer.count_inner_padding = lambda optimizer: None
    try:
        return journey(CASES["dense"], GRADS, folder / "unpadded")
    finally:
        optimizer.count_inner_padding = correct


def main(folder: Path) -> None:
    results: dict[str, Any] = {
        "early": read_too_early(folder),
        "unpadded": save_without_padding(folder),
    }
    for name, case in CASES.items():
        results[name] = [
            journey(case, case.kernels, folder / f"{name}-on"),
            journey(case, OFF, folder / f"{name}-off", resumes=False),
        ]
    write_results(folder, results)
