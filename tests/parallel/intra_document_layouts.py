"""Worker of test_intra_document.py: trains on rows of documents under each layout, and on each document alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from parallel_runs import HYBRID, VOCABULARY, layout, sample, write_results

from megatron_prism.data.document_bounds import mark_documents
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import load_weights
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.checkpoint import TrainingState, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

STEPS, LENGTH, ROWS = 2, 32, 4
DENSE = Architecture("granite", VOCABULARY, 32, 4, 64, 4, 2, 8)
MODELS = {"dense": DENSE, "hybrid": HYBRID}
# Lengths of the documents in the 33 tokens of a row, which differ from row to row. Under context parallelism of 2 the
# cuts are at 8, 16 and 24. The last document of the third row is cut by its end.
LENGTHS = [[7, 1, 12, 13], [20, 13], [33], [3, 3, 10, 2, 15]]
# Row, start and length of each document that has a token to predict.
DOCUMENTS = [
    (row, sum(lengths[:number]), length)
    for row, lengths in enumerate(LENGTHS)
    for number, length in enumerate(lengths)
    if length > 1
]
LAYOUTS: dict[int, dict[str, tuple[ParallelConfig, str]]] = {
    1: {"one": (layout(), "none"), "recompute": (layout(), "full")},
    2: {
        "tp2sp": (layout(tp=2, sp=True), "none"),
        "pp2-recompute": (layout(pp=2), "full"),
        "cp2": (layout(cp=2), "none"),
        "cp2-recompute": (layout(cp=2), "full"),
    },
}


def tokens_of(row: int) -> torch.Tensor:
    """Documents that a model can learn: each repeats a motif that depends on the row."""
    motif = torch.randint(0, VOCABULARY, (5,), generator=torch.Generator().manual_seed(row % 8))
    return motif.repeat(LENGTH // 5 + 2)[: LENGTH + 1]


class Rows:
    """Rows of several documents."""

    def __init__(self, marked: bool) -> None:
        self.marked = marked

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = sample(tokens_of(index))
        return mark_documents(row, LENGTHS[index % ROWS]) if self.marked else row


class Alone:
    """The documents of the same rows, each padded to a row of its own."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, number = divmod(index, len(DOCUMENTS))
        row, start, length = DOCUMENTS[number]
        padded = torch.zeros(LENGTH + 1, dtype=torch.int64)
        padded[:length] = tokens_of(step * ROWS + row)[start : start + length]
        return sample(padded) | {"loss_mask": (torch.arange(LENGTH) < length - 1).float()}


def trainer(
    architecture: Architecture, parallel: ParallelConfig, rows: int, recompute: str = "none"
) -> Trainer:
    # Two micro-batches, so that a pipeline holds several at once.
    size = rows // 2 if rows % 2 == 0 else 1
    return Trainer(
        architecture,
        parallel,
        BatchConfig(LENGTH, size, rows),
        OptimizerSettings(eps=1e-8),
        dtype=torch.float32,
        recompute=recompute,
        intra_document=True,
    )


def curve(run: Trainer, dataset: Any, rows: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    return [run.step(dataset, step * rows, 1e-2) for step in range(STEPS)]


def main(folder: Path) -> None:
    world = int(os.environ["WORLD_SIZE"])
    results: dict[str, Any] = {}
    for kind, architecture in MODELS.items():
        initial = folder / f"{kind}-initial"
        if world == 1:
            with session(layout(), seed=5):
                run = trainer(architecture, layout(), len(DOCUMENTS))
                save_checkpoint(initial, run.models, run.optimizer, TrainingState())
                results[f"{kind}-alone"] = curve(run, Alone(), len(DOCUMENTS))
        for name, (parallel, recompute) in LAYOUTS[world].items():
            with session(parallel, seed=5):
                run = trainer(architecture, parallel, ROWS, recompute)
                load_weights(run.models, initial)
                run.optimizer.reload_model_params()
                results[f"{kind}-{name}"] = curve(run, Rows(marked=True), ROWS)
        if world == 1:
            with session(layout(), seed=5):
                run = trainer(architecture, layout(), ROWS)
                load_weights(run.models, initial)
                run.optimizer.reload_model_params()
                results[f"{kind}-leaking"] = curve(run, Rows(marked=False), ROWS)
    write_results(folder, results)
