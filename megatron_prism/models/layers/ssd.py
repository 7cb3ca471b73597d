"""The Mamba-2 scan (state-space duality) in plain torch, chunk by chunk, from its recurrence

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t (x) B_t        one state h [head_dim, state] per head
    y_t = h_t C_t + D x_t

With S the running sum of dt A inside a chunk, a chunk is an attention-like product plus a term of the incoming state:

    y_t   = sum_{s<=t} exp(S_t - S_s) (C_t . B_s) dt_s x_s + exp(S_t) C_t H_in
    H_out = exp(S_last) H_in + sum_s exp(S_last - S_s) dt_s x_s (x) B_s

All chunks are multiplied at once (ssd_chunks.py); only the small states pass from chunk to chunk. (Dao and Gu, arXiv
2405.21060.)
A long sequence is processed in segments, and each segment is computed again in the backward pass. So memory holds the
products of one segment, not those of the sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_prism.models.layers.fused_scan import fused_scan, scan_kernel
from megatron_prism.models.layers.ssd_chunks import scan_chunks

CHUNK = 32
# A GPU prefers larger products to fewer exponentials.
DEVICE_CHUNK = 128
SEGMENT = 2048


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor | None = None,
    chunk: int | None = None,
    segment: int = SEGMENT,
) -> tuple[Tensor, Tensor]:
    """Run the scan over a whole sequence.

    Args:
        x: `[batch, seq, heads, head_dim]`.
        dt: `[batch, seq, heads]`, after bias and softplus, fp32.
        A: `[heads]`, negative, fp32.
        B, C: `[batch, seq, groups, state]`; heads of a group share them.
        D: `[heads]`.
        state: `[batch, heads, head_dim, state]` carried in, or None for zeros.
        chunk: tokens per chunk; None: what suits the device. A larger chunk needs more memory and fewer state updates.
        segment: tokens per segment. A sequence of one segment keeps everything for backward.

    Returns:
        y `[batch, seq, heads, head_dim]` in x's dtype, and the last state in fp32.
    """
    if x.is_cuda and scan_kernel() is not None:
        return fused_scan(x, dt, A, B, C, D, state)
    chunk = chunk or (DEVICE_CHUNK if x.is_cuda else CHUNK)
    if x.shape[1] <= segment:
        return _scan(chunk, x, dt, A, B, C, D, state)
    if state is None:
        state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[3], dtype=torch.float32)
    outputs = []
    for x_part, dt_part, B_part, C_part in zip(*(t.split(segment, 1) for t in (x, dt, B, C)), strict=True):
        y, state = _Segment.apply(chunk, x_part, dt_part, A, B_part, C_part, D, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


class _Segment(torch.autograd.Function):
    """`_scan`, which keeps only its inputs and computes the rest again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, chunk: int, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        ctx.chunk = chunk
        return _scan(chunk, *inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            outputs = _scan(ctx.chunk, *inputs)
        found = iter(torch.autograd.grad(outputs, [t for t in inputs if t.requires_grad], grads))
        return None, *(next(found) if need else None for need in needed)


def _scan(
    chunk: int, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    length = x.shape[1]
    chunk = min(chunk, length)
    padding = -length % chunk
    if padding:
        # dt = 0 neither decays a state nor adds to it, so padding has no effect.
        x, B, C = (torch.nn.functional.pad(t, (0, 0, 0, 0, 0, padding)) for t in (x, B, C))
        dt = torch.nn.functional.pad(dt, (0, 0, 0, padding))
    y, last = scan_chunks(chunk, x, dt, A, B, C, D, state)
    return y[:, :length], last


def ssd_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> Tensor:
    """One token of the recurrence; `state` is updated in place.

    Args:
        x: `[batch, heads, head_dim]`; dt `[batch, heads]` after bias and softplus; B, C `[batch, groups, state]`;
        state: `[batch, heads, head_dim, state]`, fp32.
    """
    ratio = x.shape[1] // B.shape[1]
    keys = B.float().repeat_interleave(ratio, 1)
    queries = C.float().repeat_interleave(ratio, 1)
    state.mul_(torch.exp(dt * A)[..., None, None])
    state.addcmul_((dt[..., None] * x.float())[..., None], keys[:, :, None])
    y = (state @ queries[..., None])[..., 0] + D.float()[:, None] * x.float()
    return y.to(x.dtype)
