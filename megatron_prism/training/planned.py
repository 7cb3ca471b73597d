"""A `train` stage as the planner sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from megatron_prism.planning.gpu_profile import GpuProfile
from megatron_prism.planning.kernel_work import FUSED_CHUNK, Software
from megatron_prism.planning.search import Found, Option, search
from megatron_prism.planning.step_time import Job
from megatron_prism.training.config import TrainConfig
from megatron_prism.training.memory import train_workload

T = TypeVar("T", bound=TrainConfig)


def train_job(config: TrainConfig, gpu: GpuProfile) -> Job:
    """The stage on these GPUs; backend 'auto' is te there, with the kernels of mamba_ssm."""
    return Job(
        config.trained_architecture, config.layout, train_workload(config), gpu, train_software(config)
    )


def train_software(config: TrainConfig) -> Software:
    te = config.backend != "torch"
    return Software(
        backend="te" if te else "torch",
        fused=te or config.compile,
        chunk=FUSED_CHUNK,
        merges_blocks=te,
        fp8=config.fp8 is not None,
    )


def with_option(config: T, option: Option) -> T:
    """The config with this layout.

    Raises:
        PrismError: if the config refuses it.
    """
    return replace(
        config,
        parallel=option.parallel,
        recompute=option.recompute,
        batch=replace(config.batch, micro_batch_size=option.micro_batch_size),
    )


def search_train(config: TrainConfig, gpus: int, gpu: GpuProfile) -> Found:
    """The layouts of this stage on `gpus` GPUs."""
    # Rows of 32k tokens and more fill a GPU by themselves.
    sizes = (1, 2, 4, 8) if config.batch.sequence_length < 32768 else (1,)
    return search(gpus, gpu, lambda option: train_job(with_option(config, option), gpu), micro_batches=sizes)
