"""The processes of an evaluation: replicas of the model, each of one or more ranks, which share the samples to make.

Replicas never wait for each other while they sample, because one may take much longer than another. They agree on the
work at the beginning, and rank 0 waits for all at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from megatron_prism.errors import ConfigError
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.platform.waiting import wait_for_all

Item = TypeVar("Item")

# How long rank 0 waits for the slowest replica. If a rank dies, the launcher ends the others at once.
MINUTES = 7 * 24 * 60.0


@dataclass(frozen=True)
class Replicas:
    """This rank's place among the replicas; the default is the only rank.

    Attributes:
        index: of this rank's replica, from 0.
        count: number of replicas.
        first: whether this is the rank of its replica that keeps what the replica has made.
    """

    index: int = 0
    count: int = 1
    first: bool = True

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.first and self.index == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This replica's share: every `count`-th item."""
        return items[self.index :: self.count]


@contextmanager
def open_replicas(parallel: ParallelConfig) -> Iterator[Replicas]:
    """Process groups for the layout, and this rank's place in it. With one process, nothing is opened."""
    if parallel.world_size == 1:
        yield Replicas()
        return
    with session(parallel):
        from megatron.core import parallel_state

        yield Replicas(
            parallel_state.get_data_parallel_rank(),
            parallel.data_parallel_size,
            parallel_state.get_model_parallel_group().rank() == 0,
        )


def agreed(value: Item | None) -> Item:
    """Rank 0's value, on every rank; the other ranks pass None."""
    import torch.distributed as dist

    values: list[Item | None] = [value]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    assert values[0] is not None, "rank 0 passes a value"
    return values[0]


def gathered(first: bool, value: Item) -> list[Item]:
    """On rank 0, when all ranks have come so far: the value of each replica's first rank; elsewhere an empty list.

    Args:
        first: whether this is the first rank of its replica.
    """
    import torch.distributed as dist

    wait_for_all(MINUTES)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[tuple[bool, Item] | None] = [None] * dist.get_world_size()
    dist.gather_object((first, value), values if dist.get_rank() == 0 else None)
    # Megatron numbers the ranks by replica.
    return [each[1] for each in values if each is not None and each[0]]


def exchanged(first: bool, value: Item) -> list[Item]:
    """On every rank, when all have come so far: the value of each replica's first rank."""
    import torch.distributed as dist

    wait_for_all(MINUTES)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[tuple[bool, Item] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, (first, value))
    return [each[1] for each in values if each is not None and each[0]]


def check_layout(parallel: ParallelConfig, engine: str) -> None:
    """Refuse a layout that brings nothing for sampling, or that the engine cannot have.

    Raises:
        ConfigError: naming the key and the remedy.
    """
    if parallel.world_size == 1:
        return
    if engine != "megatron":
        raise ConfigError(
            f"parallel: engine '{engine}' samples in one process, and this layout has {parallel.world_size}; use "
            "engine 'megatron', or leave the sizes at 1"
        )
    for key, unset in (("context_parallel_size", 1), ("virtual_pipeline_model_parallel_size", None)):
        if getattr(parallel, key) != unset:
            raise ConfigError(
                f"parallel.{key}={getattr(parallel, key)}: sampling has no use for it; leave it at {unset}, and use "
                "data_parallel_size to sample several problems at once"
            )
    if parallel.split != "even":
        raise ConfigError(f"parallel.split={parallel.split}: sampling needs 'even', or the numbers of layers")
