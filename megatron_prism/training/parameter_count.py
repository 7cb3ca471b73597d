"""The number of parameters of a model that is spread over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_prism.platform.hardware import device


def count_parameters(models: Sequence[Any], *, trainable: bool = False) -> int:
    """Number of parameters of the whole model. Copies on several tensor or pipeline ranks count once.

    Args:
        models: this rank's model chunks, wrapped in DDP.
        trainable: count only the parameters that are trained.
    """
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    tensor_rank = parallel_state.get_tensor_model_parallel_rank()
    first = parallel_state.is_pipeline_first_stage()
    count = 0
    for model in models:
        for name, parameter in model.module.named_parameters():
            replica = not getattr(parameter, "tensor_model_parallel", False) and tensor_rank != 0
            tied_copy = getattr(parameter, "shared_embedding", False) and not first and "output_layer" in name
            skipped = replica or tied_copy or (trainable and not parameter.requires_grad)
            count += 0 if skipped else parameter.numel()
    total = torch.tensor([count], dtype=torch.int64, device=device())
    dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
    return int(total.item())
