"""Mamba's convolution in blocks of tokens against torch's convolution, forward and backward, in float64 and bf16."""

from __future__ import annotations

import pytest
import torch

from megatron_prism.models.layers import causal_conv
from megatron_prism.models.layers.causal_conv import by_kernel


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, 2, 5), (5, 1, 4), (5,)]
    return [torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def results(function, arguments, length, factors):
    leaves = [each.detach().clone().requires_grad_() for each in arguments]
    output = function(*leaves, length)
    return output.detach(), *torch.autograd.grad(output, leaves, factors)


# Two tokens per block are fewer than the taps, so a block's gradients reach over two earlier blocks.
@pytest.mark.parametrize("tokens_per_block", [1, 2, 5, 1000])
@pytest.mark.parametrize(("before", "length"), [(0, 1), (0, 2), (0, 13), (2, 11), (3, 1), (3, 12)])
def test_blocks_equal_torchs_convolution(tokens_per_block, before, length, monkeypatch):
    monkeypatch.setattr(causal_conv, "BLOCK_BYTES", tokens_per_block * 2 * 5 * 8)
    arguments = inputs(before + length)
    factors = torch.randn(length, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine = results(causal_conv.causal_conv, arguments, length, factors)
    expected = results(by_kernel, arguments, length, factors)
    for got, reference in zip(mine, expected, strict=True):
        assert torch.allclose(got, reference, rtol=1e-12, atol=1e-12)


def test_low_precision_rounds_only_results():
    arguments = inputs(40, torch.bfloat16)
    factors = torch.ones(40, 2, 5)
    mine = results(causal_conv.causal_conv, arguments, 40, factors.bfloat16())
    exact = results(by_kernel, [each.double() for each in arguments], 40, factors.double())
    for got, reference in zip(mine, exact, strict=True):
        assert got.dtype is torch.bfloat16
        assert torch.allclose(got.double(), reference, rtol=2**-8, atol=1e-5)


def test_views_of_a_projection_are_read_in_place():
    wide = torch.randn(9, 2, 12, dtype=torch.float64)
    _, weight, bias = inputs(9)
    view = wide[..., 3:8]
    assert torch.equal(
        causal_conv.causal_conv(view, weight, bias, 9),
        causal_conv.causal_conv(view.contiguous(), weight, bias, 9),
    )
