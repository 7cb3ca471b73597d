"""How many nodes a stage needs, and how many processes on each."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.errors import ParallelError
from megatron_prism.launching.executor import Resources


@dataclass(frozen=True)
class Placement:
    """`nodes` x `processes` per node."""

    nodes: int
    processes: int


def place(stage: str, world_size: int, resources: Resources, *, single_node: bool = False) -> Placement:
    """Whole nodes for `world_size` processes, one on each GPU (or on each of `processes_per_node`).

    Raises:
        ParallelError: if the processes cannot be shared evenly by nodes, or only one node is possible and too small.
    """
    slots = resources.slots
    key = "gpus_per_node" if resources.gpus_per_node else "processes_per_node"
    if world_size <= slots:
        return Placement(1, world_size)
    if single_node:
        raise ParallelError(
            f"stage '{stage}': {world_size} processes do not fit one machine with {key}={slots}; change "
            "its parallel sizes, or use an executor with several nodes"
        )
    if world_size % slots:
        raise ParallelError(
            f"stage '{stage}': {world_size} processes cannot be shared evenly by nodes with {key}={slots}; "
            f"change its parallel sizes to a multiple of {slots}, or {key} in the executor file"
        )
    return Placement(world_size // slots, slots)
