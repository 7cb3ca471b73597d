"""AdamW through Megatron-Core: distributed over the data-parallel ranks, fp32 main weights under bf16."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import not_negative, positive
from megatron_prism.platform.process_groups import ParallelConfig, cuda_requests_on_cpu
from megatron_prism.training.bucket_bounds import count_inner_padding


@dataclass
class OptimizerSettings:
    """The paper's AdamW (Table 16). It names no gradient clip; 1.0 is the default of dolomite-engine.

    Attributes:
        weight_decay: of every matrix, convolution and embedding, the output layer included, as in Megatron-LM.
            One-dimensional parameters (norms, biases, Mamba's A_log, D and dt_bias) are never decayed.
        clip_grad: gradients whose global norm is larger are scaled down to it; 0 for no clipping.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-10
    weight_decay: float = 0.1
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "eps", most=1.0)
        not_negative(self, "clip_grad", "weight_decay")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 0 and less than 1")


def build_optimizer(
    models: list[Any],
    settings: OptimizerSettings,
    parallel: ParallelConfig,
    dtype: Any,
    **fields: Any,
) -> Any:
    """Megatron's optimizer for this rank's (DDP-wrapped) model chunks.

    Upstream sorts the parameters into groups (`wd_mult` is 0 for one-dimensional ones), but does not apply `wd_mult`.
    `set_group_values` applies it before every step.

    Args:
        fields: further fields of Megatron's OptimizerConfig.
    """
    import torch
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from megatron_prism.training.adam_state import use_fused_kernel

    config = OptimizerConfig(
        optimizer="adam",
        lr=1.0,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        # Without a limit upstream would not compute the norm at all.
        clip_grad=settings.clip_grad or math.inf,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        **fields,
    )
    with cuda_requests_on_cpu():
        optimizer = get_megatron_optimizer(config, models)
    count_inner_padding(optimizer)
    use_fused_kernel(optimizer)
    return optimizer


def set_group_values(optimizer: Any, lr: float, weight_decay: float) -> None:
    """Set the learning rate and the weight decay of every parameter group for the next step.

    Upstream's optimizers ignore `wd_mult`; only its OptimizerParamScheduler multiplies by it, at every step
    (optimizer_param_scheduler.py:294). Doing the same before each step also corrects groups restored from a checkpoint.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay * group["wd_mult"]
