"""One rank of a job of any size in this process: torch's `fake` process group, whose collectives do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg  # noqa: F401  registers the backend

from megatron_prism.platform.process_groups import ParallelConfig, session


@contextmanager
def rank_of(parallel: ParallelConfig, rank: int) -> Iterator[None]:
    """A session of this rank. Megatron numbers tensor ranks first, then context, data and pipeline ranks."""
    new_group = dist.new_group
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WORLD_SIZE", str(parallel.world_size))
        patched.setenv("RANK", str(rank))
        patched.setattr(dist, "new_group", lambda *a, **k: new_group(*a, **k | {"backend": "fake"}))
        dist.init_process_group("fake", store=dist.HashStore(), rank=rank, world_size=parallel.world_size)
        try:
            with session(parallel, 1):
                yield
        finally:
            dist.destroy_process_group()


def stage_and_replica(parallel: ParallelConfig, rank: int) -> tuple[int, int]:
    """The pipeline stage of a rank, and its number among the data- and context-parallel ranks."""
    tp = parallel.tensor_model_parallel_size
    replicas = parallel.data_parallel_size * parallel.context_parallel_size
    return rank // (tp * replicas), rank // tp % replicas
