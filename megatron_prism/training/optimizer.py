"""AdamW through Megatron-Core: distributed over the data-parallel ranks, fp32 main weights under bf16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_prism.pipeline.config import positive
from megatron_prism.platform import cpu_seam
from megatron_prism.platform.hardware import has_gpu
from megatron_prism.platform.process_groups import ParallelConfig, literals


@dataclass
class OptimizerSettings:
    """The paper's AdamW (Table 16); the gradient clip of 1.0 is dolomite-engine's default, the paper names none."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-10
    weight_decay: float = 0.1
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "eps", "clip_grad")


def build_optimizer(
    models: list[Any], settings: OptimizerSettings, parallel: ParallelConfig, dtype: Any
) -> Any:
    """Megatron's optimizer for this rank's (DDP-wrapped) model chunks. One-dimensional weights are not decayed."""
    import torch
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    config = OptimizerConfig(
        optimizer="adam",
        lr=1.0,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
    )
    with literals():
        optimizer = get_megatron_optimizer(config, models)
    if not has_gpu():
        cpu_seam.use_fused_adam(optimizer)
    return optimizer


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """Give every parameter group this rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
