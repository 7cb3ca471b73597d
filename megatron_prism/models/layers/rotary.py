"""Rotary positions in two passes over queries and keys, keeping nothing but the cosines and sines.

Megatron's form for torch (rope_utils.py:89) takes six passes and computes the cosines again in every layer.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from megatron_prism.models.layers.pointwise import pointwise

TABLES = "tables"


class RotatingSelfAttention(SelfAttention):
    """Megatron's self-attention, which leaves the rotation to its core attention (attention.py)."""

    def forward(
        self, hidden_states: Tensor, *inputs: Any, rotary_pos_emb: Tensor | None = None, **keywords: Any
    ) -> tuple[Tensor, Tensor | None]:
        self.core_attention.angles = rotary_pos_emb
        try:
            output: tuple[Tensor, Tensor | None] = super().forward(hidden_states, *inputs, **keywords)
        finally:
            self.core_attention.angles = None
        return output


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate channel i of x `[seq, batch, heads, head_dim]` with channel i + head_dim / 2.

    Args:
        angles: `[seq, 1, 1, head_dim]`; both halves are the same.
    """
    tables = getattr(angles, TABLES, None)
    if tables is None or tables[0].dtype != x.dtype:
        half = angles[..., : angles.shape[-1] // 2]
        tables = half.cos().to(x.dtype), half.sin().to(x.dtype)
        # All layers of a forward pass are given the same tensor of angles.
        setattr(angles, TABLES, tables)
    rotated: Tensor = _Rotate.apply(x, *tables)
    return rotated


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None


@pointwise
def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    if x.is_cuda:
        output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    else:
        # In memory the rows of the batch come first, as attention wants them on a CPU.
        output = torch.empty(x.transpose(0, 1).shape, dtype=x.dtype, device=x.device).transpose(0, 1)
    left, right = output.chunk(2, -1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return output
