"""What tests on several ranks share: layouts, samples, a negative control for context parallelism, and the results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import warm

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.layers import attention
from megatron_prism.platform.process_groups import ParallelConfig

VOCABULARY = 96
# Its layers divide into two pipeline stages, of which only the second has attention.
HYBRID = Architecture(
    "nemotron_h", VOCABULARY, 32, 4, 64, 4, 2, 8, activation="squared_relu", position_embedding="none",
    hybrid_pattern="M-M*", mamba_num_heads=8, mamba_head_dim=8, mamba_state_dim=8, mamba_num_groups=4,
    tie_word_embeddings=False,
)  # fmt: skip


def layout(
    *,
    tp: int = 1,
    pp: int = 1,
    cp: int = 1,
    dp: int = 1,
    sp: bool = False,
    vp: int | None = None,
    first: int | None = None,
    last: int | None = None,
    split: str = "even",
) -> ParallelConfig:
    return ParallelConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        context_parallel_size=cp,
        data_parallel_size=dp,
        sequence_parallel=sp,
        virtual_pipeline_model_parallel_size=vp,
        layers_in_first_stage=first,
        layers_in_last_stage=last,
        split=split,
    )


def sample(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """A training sample as a data set gives it, of `[seq + 1]` tokens."""
    return {
        "tokens": tokens[:-1],
        "labels": tokens[1:],
        "loss_mask": torch.ones(len(tokens) - 1),
        "position_ids": torch.arange(len(tokens) - 1),
    }


class Motifs:
    """Sequences that a model can learn: each repeats a short random motif."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        motif = torch.randint(0, VOCABULARY, (5,), generator=torch.Generator().manual_seed(index % 8))
        return sample(motif.repeat(self.length // 5 + 2)[: self.length + 1])


@contextmanager
def wrong_chunk_order() -> Iterator[None]:
    """Negative control: context-parallel ranks use the positions of contiguous chunks."""
    correct = attention.chunk_positions
    attention.chunk_positions = lambda n, rank, size, device: torch.arange(
        rank * n, (rank + 1) * n, device=device
    )
    try:
        yield
    finally:
        attention.chunk_positions = correct


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """In a worker: write rank 0's results for `results_of`."""
    if dist.get_rank() == 0:
        (folder / f"world{dist.get_world_size()}.json").write_text(json.dumps(results))


def results_of(main: Callable[[Path], None], folder: Path, worlds: Iterable[int]) -> dict[str, Any]:
    """Run `main(folder)`, which calls `write_results`, on each number of ranks; return all results."""
    found: dict[str, Any] = {}
    for world in worlds:
        warm.ranks(main, folder, world=world)
        found |= json.loads((folder / f"world{world}.json").read_text())
    return found
