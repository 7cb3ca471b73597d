"""Mamba-2's causal convolution and scan as one function that can compute its inside again in the backward pass.

Between the projection and the gated norm a Mamba layer makes a convolution, its activation, and the products of the
scan, which together are larger than anything else a layer keeps. `mamba_scan` keeps its inputs, which are views of the
projection's output, and the state at the start of each piece of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_prism.models.layers.causal_conv import causal_conv
from megatron_prism.models.layers.fused_scan import scan_kernel
from megatron_prism.models.layers.ssd import SEGMENT, ssd_scan


@dataclass(frozen=True)
class MixerShape:
    """Sizes of this rank's part of a mixer."""

    heads: int
    head_dim: int
    groups: int
    state: int

    @property
    def widths(self) -> list[int]:
        """Channels of x, B and C."""
        return [self.heads * self.head_dim, self.groups * self.state, self.groups * self.state]


@dataclass(frozen=True)
class MixerWeights:
    """Parameters of this rank's part of a mixer.

    Attributes:
        conv_weight: `[channels, 1, taps]`; conv_bias `[channels]`.
        dt_bias, A_log, D: `[heads]`.
    """

    conv_weight: Tensor
    conv_bias: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor

    def all(self) -> tuple[Tensor, ...]:
        return self.conv_weight, self.conv_bias, self.dt_bias, self.A_log, self.D


def mamba_scan(xBC: Tensor, dt: Tensor, weights: MixerWeights, shape: MixerShape, *, again: bool) -> Tensor:
    """Convolution, activation and scan of whole sequences.

    Args:
        xBC: `[seq, batch, channels]`; dt: `[seq, batch, heads]`.
        again: compute the inside again in the backward pass. Longer sequences than `SEGMENT` always do.

    Returns:
        y `[seq, batch, heads * head_dim]`.
    """
    if again or xBC.shape[0] > SEGMENT:
        y: Tensor = _Again.apply(shape, xBC, dt, *weights.all())
        return y
    return convolve_and_scan(shape, xBC, dt, *weights.all())[0]


def convolve_and_scan(
    shape: MixerShape,
    xBC: Tensor,
    dt: Tensor,
    *weights: Tensor,
    state: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One piece of a sequence.

    Args:
        xBC: `[before + seq, batch, channels]`, beginning with up to taps - 1 tokens that lie before the piece.
        dt: `[seq, batch, heads]`.
        weights: those of `MixerWeights`, in its order.
        state: carried in, as `ssd_scan` takes and returns it.
        mask: `[batch, seq, 1]`; where it is 0, a token neither decays the state nor adds to it.

    Returns:
        y `[seq, batch, heads * head_dim]`, and the last state.
    """
    conv_weight, conv_bias, dt_bias, A_log, D = weights
    length, batch, _ = dt.shape
    mixed = causal_conv(xBC, conv_weight, conv_bias, length)
    x, B, C = mixed.transpose(0, 1).split(shape.widths, -1)
    step = F.softplus(dt.transpose(0, 1).float() + dt_bias.float())
    if mask is not None:
        step = step * mask
    y, last = ssd_scan(
        x.reshape(batch, length, shape.heads, shape.head_dim),
        step,
        -torch.exp(A_log.float()),
        B.reshape(batch, length, shape.groups, shape.state),
        C.reshape(batch, length, shape.groups, shape.state),
        D,
        state,
    )
    return y.flatten(2).transpose(0, 1).contiguous(), last


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: MixerShape, xBC: Tensor, dt: Tensor, *weights: Tensor) -> Tensor:
        ctx.shape, ctx.taps, size = shape, weights[0].shape[-1], _piece_length(xBC)
        ctx.size = size
        state = torch.zeros(
            xBC.shape[1], shape.heads, shape.head_dim, shape.state, dtype=torch.float32, device=xBC.device
        )
        outputs, states = [], []
        for start in range(0, xBC.shape[0], size):
            states.append(state)
            piece = _piece(xBC, start, size, ctx.taps)
            y, state = convolve_and_scan(shape, piece, dt[start : start + size], *weights, state=state)
            outputs.append(y)
        ctx.save_for_backward(xBC, dt, *weights, *states)
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        xBC, dt, *rest = ctx.saved_tensors
        weights, states = rest[:5], rest[5:]
        d_xBC, d_dt = torch.zeros_like(xBC), torch.empty_like(dt)
        d_weights: list[Tensor | None] = [None] * len(weights)
        d_state = torch.zeros_like(states[0])
        before = ctx.taps - 1
        for index in reversed(range(len(states))):
            start = index * ctx.size
            span = slice(start, start + ctx.size)
            inputs = [_piece(xBC, start, ctx.size, ctx.taps), dt[span], *weights, states[index]]
            inputs = [each.detach().requires_grad_() for each in inputs]
            with torch.enable_grad():
                outputs = convolve_and_scan(ctx.shape, *inputs[:-1], state=inputs[-1])
            found = torch.autograd.grad(outputs, inputs, (grads[0][span], d_state))
            d_piece, d_dt[span], d_state = found[0], found[1], found[-1]
            missing = max(0, before - start)
            d_xBC[start - before + missing : span.stop] += d_piece[missing:]
            for number, each in enumerate(found[2:-1]):
                total = d_weights[number]
                d_weights[number] = each.float() if total is None else total.add_(each)
        cast = [
            total.to(weight.dtype)
            for total, weight in zip(d_weights, weights, strict=True)
            if total is not None
        ]
        return None, d_xBC, d_dt, *cast


def _piece_length(xBC: Tensor) -> int:
    """The fused kernel's products do not grow with the sequence."""
    fused = xBC.is_cuda and scan_kernel() is not None
    return xBC.shape[0] if fused else SEGMENT


def _piece(xBC: Tensor, start: int, size: int, taps: int) -> Tensor:
    """The tokens of the piece at `start` and the `taps - 1` before it, zeros before the first token."""
    begin = start - taps + 1
    piece = xBC[max(0, begin) : start + size]
    return F.pad(piece, (0, 0, 0, 0, -begin, 0)) if begin < 0 else piece
