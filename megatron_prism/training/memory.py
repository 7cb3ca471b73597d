"""The memory of one GPU in training, on paper: from the fields of a `train` or `rl` stage to the planner's."""

from __future__ import annotations

from typing import Any

from megatron_prism.planning.memory import Memory, training_memory
from megatron_prism.planning.state_bytes import StatePrecision
from megatron_prism.planning.workload import ELEMENT, Workload
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.config import TrainConfig
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.precision import PrecisionSettings

SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}


def stage_memory(config: TrainConfig) -> Memory:
    """The memory of a `train` stage on its GPU that needs the most."""
    return training_memory(config.trained_architecture, config.layout, train_workload(config))


def train_workload(config: TrainConfig) -> Workload:
    """What a rank of a `train` stage computes at once."""
    batch, layout = config.batch, config.layout
    return Workload(
        batch.sequence_length,
        batch.micro_batch_size,
        batch.micro_batches(layout),
        recompute=config.recompute,
        element=ELEMENT[config.dtype],
        trainable=config.trainable,
        fp8=config.fp8 is not None,
        **state_fields(config.dtype, config.precision, config.kernels, layout),
    )


def state_fields(
    dtype: str, precision: PrecisionSettings, kernels: KernelSettings, layout: ParallelConfig
) -> dict[str, Any]:
    """Fields of a Workload on gradients and optimizer state, on a GPU."""
    return {
        "precision": state_precision(dtype, precision),
        "overlap": kernels.overlaps(layout, gpu=True)[0],
        "bucket": kernels.bucket_size,
    }


def state_precision(dtype: str, settings: PrecisionSettings) -> StatePrecision:
    """Bytes of gradients and optimizer state."""
    plain = StatePrecision.of(dtype, settings.grad_reduce_in_fp32)
    if not settings.precision_aware_optimizer:
        return plain
    return StatePrecision(
        weight=plain.weight,
        gradient=plain.gradient,
        main=SIZES[settings.main_params_dtype],
        moments=SIZES[settings.exp_avg_dtype] + SIZES[settings.exp_avg_sq_dtype],
        aware=True,
        offloaded=settings.optimizer_offload,
    )
