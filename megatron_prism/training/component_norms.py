"""The gradient norm of each component of a model (attention, mlp, mamba, norm, embedding, head)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_prism.models.components import COMPONENTS, component_of
from megatron_prism.platform.hardware import device


class ComponentNorms:
    """Measures the prepared gradients of an optimizer, before they are clipped.

    Args:
        models: this rank's chunks, wrapped in DDP.
    """

    def __init__(self, models: Sequence[Any], optimizer: Any) -> None:
        self._optimizers = optimizer.chained_optimizers
        self._components = {
            id(parameter): COMPONENTS.index(component_of(name))
            for model in models
            for name, parameter in model.module.named_parameters()
        }

    def measure(self) -> dict[str, float]:
        """Component -> norm, the same on all ranks, which must all call this. Absent components are left out.

        Each part of a gradient counts once, by upstream's rules (optimizer.py:get_main_grads_for_grad_norm); the sum of
        the squares is the square of the norm that upstream clips.
        """
        from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
        from megatron.core.transformer.module import param_is_not_shared

        total = torch.zeros(len(COMPONENTS), dtype=torch.float64, device=device())
        for optimizer in self._optimizers:
            squares = torch.zeros_like(total)
            for parameter, main in _pairs(optimizer):
                grad = getattr(main, "decoupled_grad", None) if main.grad is None else main.grad
                if (
                    grad is not None
                    and param_is_not_shared(main)
                    and param_is_not_tensor_parallel_duplicate(main, getattr(optimizer, "tp_group", None))
                ):
                    squares[self._components[id(parameter)]] += grad.double().square().sum()
            dist.all_reduce(squares, group=optimizer.get_grad_stats_parallel_group())
            total += squares
        norms = total.sqrt().tolist()
        return {name: norm for name, norm in zip(COMPONENTS, norms, strict=True) if norm}


def _pairs(optimizer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter of the model, and the tensor (or shard) that its optimizer updates in its place."""
    names = (
        ("model_float16_groups", "shard_fp32_from_float16_groups"),
        ("model_fp32_groups", "shard_fp32_groups"),
        ("float16_groups", "fp32_from_float16_groups"),
        ("fp32_from_fp32_groups", "fp32_from_fp32_groups"),
    )
    found = [pair for pair in names if hasattr(optimizer, pair[0])]
    if not found:
        # FP32Optimizer updates the parameters themselves.
        for parameter in optimizer.get_parameters():
            yield parameter, parameter
    for of_model, updated in found:
        for parameters, mains in zip(getattr(optimizer, of_model), getattr(optimizer, updated), strict=True):
            yield from zip(parameters, mains, strict=True)
