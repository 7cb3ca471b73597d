"""RMSNorm, plain and gated, in plain torch. Upstream's (torch_norm.py:32) refuses sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_prism.models.layers.pointwise import pointwise
from megatron_prism.models.layers.recompute import with_recipe


@pointwise
def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised x in its own precision, and 1 / rms(x), at least fp32."""
    h = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    h = h * scale
    return (h if weight is None else h.mul_(weight)).to(x.dtype), scale


@pointwise
def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """With n = x * scale: d_weight = sum(grad * n), d_x = scale * (grad * weight - n * mean(grad * weight * n))."""
    exact = scale.dtype
    normal, grad = x.to(exact) * scale, grad.to(exact)
    product = grad * normal
    mean = (product @ weight.to(exact)).div_(x.shape[-1])[..., None]
    d_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
    d_x = (grad * weight).sub_(normal.mul_(mean)).mul_(scale)
    return d_x.to(x.dtype), d_weight


class _RMSNorm(torch.autograd.Function):
    """Keeps x and one number per token, as torch's kernel on a GPU does. torch's CPU form keeps four copies of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        output, scale = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_rms_norm_backward(grads[0], *ctx.saved_tensors), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight, eps)
    output: Tensor = _RMSNorm.apply(x, weight, eps)
    return output


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; x is `[..., hidden]`.

    Without `eps` the model's epsilon is used; upstream's Mamba layer passes none (mamba_layer.py:85).
    """

    recompute_output = False

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        # This attribute makes finalize_model_grads sum this gradient over the tensor-parallel ranks.
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010 (Parameter declares no such field)
        self.eps = config.layernorm_epsilon if eps is None else eps

    def forward(self, x: Tensor) -> Tensor:
        output = rms_norm(x, self.weight, self.eps)
        return with_recipe(output, rms_norm, x, self.weight, self.eps) if self.recompute_output else output


@pointwise
def _gated_norm(y: Tensor, z: Tensor | None, weight: Tensor, eps: float, group: int) -> Tensor:
    h = y.float()
    if z is not None:
        h = h * F.silu(z.float())
    h = F.rms_norm(h.unflatten(-1, (-1, group)), (group,), None, eps)
    return (h.flatten(-2) * weight.float()).to(y.dtype)


@pointwise
def _gated_norm_backward(
    grad: Tensor, y: Tensor, z: Tensor, weight: Tensor, eps: float, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    yf, zf = y.float(), z.float()
    gate = F.silu(zf)
    h = (yf * gate).unflatten(-1, (-1, group))
    scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    normal, g = h.mul_(scale), grad.float()
    product = g * normal.flatten(-2)
    d_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
    mean = product.mul_(weight.float()).unflatten(-1, (-1, group)).mean(-1, keepdim=True)
    d_h = (g * weight.float()).unflatten(-1, (-1, group)).sub_(normal.mul_(mean)).mul_(scale).flatten(-2)
    d_y = (d_h * gate).to(y.dtype)
    d_z = torch.ops.aten.silu_backward(d_h.mul_(yf), zf).to(z.dtype)
    return d_y, d_z, d_weight


class _GatedNorm(torch.autograd.Function):
    """Keeps y and z."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, eps: float, group: int) -> Tensor:
        ctx.save_for_backward(y, z, weight)
        ctx.settings = eps, group
        return _gated_norm(y, z, weight, eps, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_gated_norm_backward(grads[0], *ctx.saved_tensors, *ctx.settings), None, None


class GatedRMSNorm(nn.Module):
    """Mamba-2's output norm: y * silu(z) if there is a z, then RMSNorm over groups of `group_size` channels.

    Parameter names are those of mamba_ssm's RMSNormGated, so checkpoints are shared with it.
    """

    recompute_output = False

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm_before_gate:
            raise ValueError("norm_before_gate: Megatron's mixer gates first")
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.eps = eps
        self.group_size = group_size or hidden_size

    def forward(self, y: Tensor, z: Tensor | None = None) -> Tensor:
        settings = self.weight, self.eps, self.group_size
        if z is None:
            return _gated_norm(y, None, *settings)
        output: Tensor = _GatedNorm.apply(y, z, *settings)
        return with_recipe(output, _gated_norm, y, z, *settings) if self.recompute_output else output

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        from megatron.core import parallel_state
        from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=(metadata or {}).get("dp_cp_group")
            or parallel_state.get_data_parallel_group(with_context_parallel=True),
        )
