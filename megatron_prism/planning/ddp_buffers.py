"""The buffers of Megatron-Core's DDP, with its paddings, and the share of them that a rank's optimizer updates.

With the distributed optimizer every trained parameter lies in one buffer per model chunk, in the reverse order of the
modules. A parameter starts at a multiple of 64 numbers and a bucket ends at a multiple of the ranks and of 128
(param_and_grad_buffer.py:640-745 of Megatron-Core 0.16.1). Each rank owns an equal part of every bucket.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prism.planning.parameters import Parameter
from megatron_prism.platform.process_groups import ParallelConfig

ALIGNMENT, BUCKET_MULTIPLE = 64, 128
# Buckets in parameters, if there are any (distributed_data_parallel.py:62).
SMALLEST_BUCKET, BUCKET_PER_REPLICA = 40_000_000, 1_000_000


@dataclass(frozen=True)
class Buffer:
    """One buffer.

    Attributes:
        length: numbers, paddings included.
        bounds: `[(first, end)]` of each bucket.
        spans: `[(first, end)]` of each parameter, in order.
    """

    length: int
    bounds: tuple[tuple[int, int], ...]
    spans: tuple[tuple[int, int], ...]

    def shard(self, rank: int, ranks: int) -> int:
        """Numbers of parameters, without padding, that a rank's optimizer owns."""
        return sum(self._filled(*self._part(bounds, rank, ranks)) for bounds in self.bounds)

    def largest_shard(self, ranks: int) -> int:
        """The shard of the rank that owns the most."""
        return max(self.shard(rank, ranks) for rank in range(ranks))

    @staticmethod
    def _part(bounds: tuple[int, int], rank: int, ranks: int) -> tuple[int, int]:
        first, end = bounds
        size = (end - first) // ranks
        return first + rank * size, first + (rank + 1) * size

    def _filled(self, first: int, end: int) -> int:
        found, index = 0, max(0, bisect_right(self.spans, (first, math.inf)) - 1)
        while index < len(self.spans) and self.spans[index][0] < end:
            found += max(0, min(end, self.spans[index][1]) - max(first, self.spans[index][0]))
            index += 1
        return found


def bucket_size(parallel: ParallelConfig, chosen: int | None) -> int:
    """Parameters of a bucket where gradients are reduced during the backward pass."""
    return chosen or max(SMALLEST_BUCKET, BUCKET_PER_REPLICA * parallel.data_parallel_size)


def layout_buffer(
    parameters: Sequence[Parameter], *, ranks: int, distributed: bool, bucket: int | None
) -> Buffer:
    """The buffer of a model chunk's trained parameters.

    Args:
        parameters: in the order of the modules.
        ranks: data-parallel times context-parallel ranks.
        distributed: whether the optimizer is distributed, without which nothing is padded.
        bucket: parameters of a bucket; None: one bucket.
    """
    multiple = math.lcm(ranks, BUCKET_MULTIPLE) if distributed else 1
    alignment = ALIGNMENT if distributed else 1
    bounds: list[tuple[int, int]] = []
    spans: list[tuple[int, int]] = []
    start = begin = end = 0
    open_bucket = False

    def close() -> int:
        nonlocal begin, open_bucket
        padded = -(-end // multiple) * multiple
        bounds.append((begin, padded))
        begin, open_bucket = padded, False
        return padded

    for each in reversed([parameter for parameter in parameters if parameter.trained]):
        start = -(-start // alignment) * alignment
        alone = each.shared and distributed
        if alone and open_bucket:
            end = start
            start = close()
        end, open_bucket = start + each.size, True
        spans.append((start, end))
        full = bucket is not None and end - begin >= bucket
        start = close() if full or alone else end
    if open_bucket:
        close()
    return Buffer(bounds[-1][1] if bounds else 0, tuple(bounds), tuple(spans))


def chunk_buffers(
    chunks: Sequence[Sequence[Parameter]],
    parallel: ParallelConfig,
    stage: int,
    *,
    overlap: bool,
    chosen_bucket: int | None = None,
) -> list[Buffer]:
    """The buffers of a pipeline stage. Only the first chunk of the first stage is cut into buckets.

    Args:
        overlap: whether gradients are reduced during the backward pass (`kernels.overlap_grad_reduce`).
        chosen_bucket: `kernels.bucket_size`.
    """
    size = bucket_size(parallel, chosen_bucket) if overlap and stage == 0 else None
    return [
        layout_buffer(
            parameters,
            ranks=parallel.data_parallel_size * parallel.context_parallel_size,
            distributed=parallel.use_distributed_optimizer,
            bucket=size if number == 0 else None,
        )
        for number, parameters in enumerate(chunks)
    ]
