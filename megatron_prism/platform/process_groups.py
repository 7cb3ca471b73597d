"""Parallel sizes and the process groups they need: gloo without CUDA, nccl with it, from torchrun's environment."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from megatron_prism.errors import ParallelError


@dataclass
class ParallelConfig:
    """How a model is distributed over processes; the product of the sizes is the number of processes."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    data_parallel_size: int = 1
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = True

    def __post_init__(self) -> None:
        for name in (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "context_parallel_size",
            "data_parallel_size",
        ):
            if getattr(self, name) < 1:
                raise ParallelError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ParallelError("sequence_parallel=true needs tensor_model_parallel_size > 1")
        virtual = self.virtual_pipeline_model_parallel_size
        if virtual is not None and (virtual < 2 or self.pipeline_model_parallel_size < 2):
            raise ParallelError(
                f"virtual_pipeline_model_parallel_size={virtual} must be at least 2, and needs "
                f"pipeline_model_parallel_size of at least 2 (it is {self.pipeline_model_parallel_size})"
            )

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
        parallel_state.destroy_model_parallel()
        if started_here:
            dist.destroy_process_group()
            # A model, its configs and its hooks refer to each other, so only the collector frees its memory, and with
            # it some 50 threads of its process groups.
            gc.collect()


def cuda_requests_on_cpu() -> contextlib.AbstractContextManager[object]:
    """The context in which Megatron's build, schedule, step and checkpoint code runs (seam D of cpu_seam)."""
    from megatron_prism.platform import cpu_seam

    return cpu_seam.cuda_requests_on_cpu()
