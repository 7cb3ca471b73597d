"""Mamba-2's causal convolution, one filter per channel, with its activation.

A CPU's convolution kernel wants the channels before the tokens, so input, output and both gradients would be reordered,
which takes longer than the four multiplications per number. Here the tokens stay first. A block of tokens at a time
stays in the cache; the backward pass computes it again, so only the input is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Bytes of a block in fp32: the fastest of 1/8 to 8 MiB on a CPU with 1 MiB of cache per core.
BLOCK_BYTES = 2**19


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, length: int) -> Tensor:
    """silu(b + sum over k of w_k x_(t - taps + 1 + k)) for the last `length` tokens.

    Args:
        x: `[before + length, batch, channels]` with up to taps - 1 tokens that come before; those missing are zeros.
        weight: `[channels, 1, taps]`; bias: `[channels]`.

    Returns:
        `[length, batch, channels]` in x's precision, computed in at least fp32.
    """
    if x.is_cuda:
        return by_kernel(x, weight, bias, length)
    output: Tensor = _CausalConv.apply(x, weight, bias, length)
    return output


def by_kernel(x: Tensor, weight: Tensor, bias: Tensor, length: int) -> Tensor:
    """`causal_conv` with torch's convolution, which is made for GPUs."""
    missing = length + weight.shape[-1] - 1 - x.shape[0]
    channels_first = F.pad(x, (0, 0, 0, 0, missing, 0)).permute(1, 2, 0)
    mixed = F.conv1d(channels_first, weight.to(x.dtype), bias.to(x.dtype), groups=weight.shape[0])
    return F.silu(mixed).permute(2, 0, 1)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.length = length
        output = x.new_empty(length, *x.shape[1:])
        for block in _blocks(x, weight, bias, length):
            output[block.start : block.stop] = F.silu(block.mixed())
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        before = x.shape[0] - ctx.length
        exact = torch.promote_types(x.dtype, torch.float32)
        d_x = torch.empty(x.shape, dtype=exact, device=x.device)
        d_x[:before] = 0.0
        d_filters = torch.zeros(weight.shape[-1], weight.shape[0], dtype=exact, device=x.device)
        d_bias = torch.zeros_like(d_filters[0])
        for block in _blocks(x, weight, bias, ctx.length):
            grad = grads[0][block.start : block.stop].to(exact)
            d_mixed = torch.ops.aten.silu_backward(grad, block.mixed())
            d_bias += d_mixed.sum((0, 1))
            for back, (filter_, inputs) in enumerate(block.taps()):
                # Earlier blocks and the tap of the token itself have written what the other taps add to.
                part = d_mixed[d_mixed.shape[0] - inputs.shape[0] :]
                stop = before + block.stop - back
                target = d_x[stop - inputs.shape[0] : stop]
                if back == 0:
                    torch.mul(part, filter_, out=target)
                else:
                    target.addcmul_(part, filter_)
                d_filters[-1 - back] += (part * inputs).sum((0, 1))
        d_weight = d_filters.t()[:, None].to(weight.dtype)
        return d_x.to(x.dtype), d_weight, d_bias.to(bias.dtype), None


class _Block:
    """Output tokens `start` to `stop` and the inputs that they need, in at least fp32."""

    def __init__(self, x: Tensor, filters: Tensor, bias: Tensor, span: tuple[int, int, int]) -> None:
        self.start, self.stop, before = span
        first = max(0, before + self.start - filters.shape[0] + 1)
        self.inputs = x[first : before + self.stop].to(filters.dtype)
        self.filters, self.bias = filters, bias

    def taps(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The filter `[channels]` of each tap, from the token itself backwards, and its inputs.

        These belong to the last outputs of the block; with fewer inputs than outputs, the others have none.
        """
        count, have = self.stop - self.start, self.inputs.shape[0]
        for back in range(min(self.filters.shape[0], have)):
            stop = have - back
            yield self.filters[-1 - back], self.inputs[max(0, stop - count) : stop]

    def mixed(self) -> Tensor:
        """The convolution without its activation."""
        (own, inputs), *earlier = self.taps()
        output = torch.addcmul(self.bias, inputs, own)
        for filter_, inputs in earlier:
            output[output.shape[0] - inputs.shape[0] :].addcmul_(inputs, filter_)
        return output


def _blocks(x: Tensor, weight: Tensor, bias: Tensor, length: int) -> Iterator[_Block]:
    exact = torch.promote_types(x.dtype, torch.float32)
    filters = weight[:, 0].t().to(exact).contiguous()
    size = max(1, BLOCK_BYTES // (x[0].numel() * exact.itemsize))
    for start in range(0, length, size):
        span = (start, min(start + size, length), x.shape[0] - length)
        yield _Block(x, filters, bias.to(exact), span)
