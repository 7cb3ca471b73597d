"""The activation functions of MLPs, which keep only the first linear layer's output for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.mlp import MLP
from torch import Tensor
from torch.nn import functional as F

from megatron_prism.models.layers.pointwise import pointwise
from megatron_prism.models.layers.recompute import with_recipe


@pointwise
def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@pointwise
def _swiglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    d_x = torch.empty_like(x)
    d_gate, d_up = d_x.chunk(2, -1)
    torch.mul(grad, F.silu(gate), out=d_up)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=d_gate)
    return d_x


@pointwise
def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


@pointwise
def _squared_relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return F.relu(x).mul_(grad).mul_(2)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _swiglu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _swiglu_backward(grads[0], *ctx.saved_tensors)


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _squared_relu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _squared_relu_backward(grads[0], *ctx.saved_tensors)


def swiglu(x: Tensor) -> Tensor:
    """silu(a) * b for x = [a, b], `[..., 2 * width]` -> `[..., width]`."""
    result: Tensor = _SwiGLU.apply(x)
    return result


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2, Nemotron-H's activation."""
    result: Tensor = _SquaredReLU.apply(x)
    return result


class TorchMLP(MLP):
    """Megatron's MLP without biases, with the activation functions of this file."""

    recompute_output = False

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:
        projected, _bias = self.linear_fc1(hidden_states)
        gated = self.config.gated_linear_unit
        activated = swiglu(projected) if gated else squared_relu(projected)
        if self.recompute_output:
            activated = with_recipe(activated, _swiglu if gated else _squared_relu, projected)
        output: tuple[Tensor, Tensor | None] = self.linear_fc2(activated)
        return output
