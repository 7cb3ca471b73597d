"""Parallel sizes and the process groups they need: gloo without CUDA, nccl with it, from torchrun's environment."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from megatron_prism.errors import ParallelError

SPLITS = ("even", "balanced")
# More than the ranks of any cluster.
MOST_RANKS = 2**20


@dataclass
class ParallelConfig:
    """How a model is distributed over processes; the product of the sizes is the number of processes.

    Attributes:
        split: 'even': every pipeline stage has as many layers, but for the next two settings; 'balanced': the first and
            the last stage get the numbers that make the slowest stage fastest (`planning/pipeline_split.py`).
        layers_in_first_stage, layers_in_last_stage: their numbers of layers; the other stages share the rest evenly.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    data_parallel_size: int = 1
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = True
    split: str = "even"
    layers_in_first_stage: int | None = None
    layers_in_last_stage: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "context_parallel_size",
            "data_parallel_size",
        ):
            if not 1 <= getattr(self, name) <= MOST_RANKS:
                raise ParallelError(
                    f"{name}={getattr(self, name)}: must be 1 or more, and at most {MOST_RANKS}"
                )
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ParallelError("sequence_parallel=true needs tensor_model_parallel_size > 1")
        virtual = self.virtual_pipeline_model_parallel_size
        if virtual is not None and not (
            2 <= virtual <= MOST_RANKS and self.pipeline_model_parallel_size >= 2
        ):
            raise ParallelError(
                f"virtual_pipeline_model_parallel_size={virtual} must be from 2 to {MOST_RANKS}, and needs "
                f"pipeline_model_parallel_size of at least 2 (it is {self.pipeline_model_parallel_size})"
            )

        self._check_split()

    def _check_split(self) -> None:
        ends = {
            name: getattr(self, name)
            for name in ("layers_in_first_stage", "layers_in_last_stage")
            if getattr(self, name) is not None
        }
        if self.split not in SPLITS:
            raise ParallelError(f"split={self.split!r} is not possible; use one of {', '.join(SPLITS)}")
        if self.split == "balanced" and ends:
            raise ParallelError(
                f"{' and '.join(f'{name}={value}' for name, value in ends.items())}: split=balanced chooses the number "
                "itself; remove it, or use split=even"
            )
        chosen = ["split=balanced"] if self.split == "balanced" else [f"{k}={v}" for k, v in ends.items()]
        if chosen and self.pipeline_model_parallel_size < 2:
            raise ParallelError(f"{chosen[0]} needs pipeline_model_parallel_size of at least 2")
        for name, value in ends.items():
            if value < 1:
                raise ParallelError(f"{name}={value}: must be 1 or more")

    def short_sizes(self) -> list[str]:
        """The sizes above 1 for a reader: ['TP 2', 'SP', 'PP 4', 'DP 16']."""
        sizes = {
            "TP": self.tensor_model_parallel_size,
            "PP": self.pipeline_model_parallel_size,
            "VPP": self.virtual_pipeline_model_parallel_size or 1,
            "CP": self.context_parallel_size,
            "DP": self.data_parallel_size,
        }
        parts = [f"{name} {size}" for name, size in sizes.items() if size > 1]
        if self.sequence_parallel:
            parts.insert(1, "SP")
        return parts

    @property
    def is_uneven(self) -> bool:
        """Whether pipeline stages may have different numbers of layers."""
        ends = (self.layers_in_first_stage, self.layers_in_last_stage)
        return self.split != "even" or any(each is not None for each in ends)

    def layers_per_stage(self, num_layers: int) -> list[int]:
        """The number of layers of each pipeline stage, from the first to the last.

        The layout must not be 'balanced' any more.

        Raises:
            ParallelError: if the layers cannot be split so.
        """
        assert self.split == "even", "pipeline_split.with_split writes the numbers out"
        pp, virtual = self.pipeline_model_parallel_size, self.virtual_pipeline_model_parallel_size or 1
        first, last = self.layers_in_first_stage, self.layers_in_last_stage
        ends = [each for each in (first, last) if each is not None]
        others, rest = pp - len(ends), num_layers - sum(ends)
        if (others and (rest < others or rest % others)) or (not others and rest):
            given = f" after {' and '.join(map(str, ends))} in the first and last stage" if ends else ""
            raise ParallelError(
                f"num_layers={num_layers}: {rest} layers{given} cannot be shared evenly by {others} pipeline stages; "
                "change pipeline_model_parallel_size, or layers_in_first_stage and layers_in_last_stage, or use "
                "split=balanced"
            )
        share = [rest // others] * others if others else []
        stages = ([first] if first is not None else []) + share + ([last] if last is not None else [])
        for count in stages:
            if count % virtual:
                raise ParallelError(
                    f"num_layers={num_layers}: a pipeline stage of {count} layers cannot be divided into "
                    f"virtual_pipeline_model_parallel_size={virtual} parts"
                )
        return stages

    @property
    def world_size(self) -> int:
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
            * self.data_parallel_size
        )

    def check_world(self, world_size: int) -> None:
        """Raise a ParallelError unless the product of the sizes is `world_size`."""
        if world_size != self.world_size:
            raise ParallelError(
                f"tensor {self.tensor_model_parallel_size} x pipeline {self.pipeline_model_parallel_size} x "
                f"context {self.context_parallel_size} x data {self.data_parallel_size} = {self.world_size} processes, "
                f"but {world_size} are running; change the sizes or the number of processes"
            )

    def check_sequence(self, sequence_length: int) -> None:
        """Raise a ParallelError unless a sequence divides evenly: context parallelism needs 2 chunks per rank, sequence
        parallelism one per tensor-parallel rank.
        """
        parts = 2 * self.context_parallel_size if self.context_parallel_size > 1 else 1
        parts *= self.tensor_model_parallel_size if self.sequence_parallel else 1
        if sequence_length % parts:
            raise ParallelError(
                f"sequence_length={sequence_length} cannot be split into {parts} equal parts, as context_parallel_size="
                f"{self.context_parallel_size} and sequence_parallel={self.sequence_parallel} require; choose a "
                f"multiple of {parts}"
            )


@contextlib.contextmanager
def session(
    parallel: ParallelConfig | None = None,
    seed: int = 0,
    timeout_minutes: float | None = None,
    *,
    te_rng_tracker: bool = False,
    graphable_rng: bool = False,
) -> Iterator[None]:
    """Process groups, Megatron's parallel state and random states, for the duration of the block.

    Inside another session this does nothing. A single process needs no launcher; several are started by torchrun.

    Args:
        timeout_minutes: a collective that not all ranks join ends the run after this time; None: torch's default.
        te_rng_tracker, graphable_rng: the kind of Megatron's random states, see `randomness.seed_everything`.

    Raises:
        ParallelError: if the product of the sizes is not the number of processes.
    """
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megatron_prism.platform import cpu_seam
    from megatron_prism.platform.collectives import check_connections, prepare_environment
    from megatron_prism.platform.hardware import device, has_gpu
    from megatron_prism.platform.randomness import seed_everything

    if parallel_state.model_parallel_is_initialized():
        yield
        return
    parallel = parallel or ParallelConfig()
    parallel.check_world(int(os.environ.get("WORLD_SIZE", "1")))
    cpu_seam.install()
    started_here = not dist.is_initialized()
    timeout = None if timeout_minutes is None else timedelta(minutes=timeout_minutes)
    if started_here:
        if has_gpu():
            model_parallel = parallel.tensor_model_parallel_size > 1 or parallel.context_parallel_size > 1
            prepare_environment(model_parallel)
            torch.cuda.set_device(device())
            check_connections(model_parallel, torch.cuda.get_device_capability())
        backend = "nccl" if has_gpu() else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
            context_parallel_size=parallel.context_parallel_size,
            **({} if timeout_minutes is None else {"distributed_timeout_minutes": timeout_minutes}),
        )
        seed_everything(seed, te_rng_tracker=te_rng_tracker, graphable_rng=graphable_rng)
        yield
    finally:
        groups = parallel_state._global_process_group_list or []
        parallel_state.destroy_model_parallel()
        if not started_here:
            # torch keeps a group, and its thread, until that group or all of them are destroyed: in a process with
            # dozens of sessions everything took twice as long.
            for group in groups:
                # Megatron has destroyed some of them.
                if group in dist.distributed_c10d._world.pg_map:
                    dist.destroy_process_group(group)
        if started_here:
            dist.destroy_process_group()
            # A model, its configs and its hooks refer to each other, so only the collector frees its memory, and with
            # it some 50 threads of its process groups.
            gc.collect()


def cuda_requests_on_cpu() -> contextlib.AbstractContextManager[object]:
    """The context in which Megatron's build, schedule, step and checkpoint code runs (seam D of cpu_seam)."""
    from megatron_prism.platform import cpu_seam

    return cpu_seam.cuda_requests_on_cpu()
