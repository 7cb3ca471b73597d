"""A long sequence is scanned in segments: the numbers are the same, and no segment's products are kept."""

from __future__ import annotations

import pytest
import torch

from megatron_prism.models.layers.ssd import ssd_scan


def inputs(length: int, carried: bool = False) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, 4, 8, generator=g)
    dt = torch.rand(2, length, 4, generator=g)
    a = -torch.rand(4, generator=g) * 4
    b, c = (torch.randn(2, length, 2, 6, generator=g) for _ in range(2))
    state = [torch.randn(2, 4, 8, 6, generator=g)] if carried else []
    return [t.requires_grad_() for t in (x, dt, a, b, c, torch.randn(4, generator=g), *state)]


def with_gradients(tensors: list[torch.Tensor], segment: int) -> list[torch.Tensor]:
    y, last = ssd_scan(*tensors, chunk=8, segment=segment)
    return [y, last, *torch.autograd.grad(y.square().sum() + last.square().sum(), tensors)]


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("segment", [16, 20, 64, 99])
def test_segments_change_nothing(segment, carried):
    tensors = inputs(100, carried)
    for got, expected in zip(with_gradients(tensors, segment), with_gradients(tensors, 100), strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_gradients_of_the_outputs_alone():
    tensors = inputs(100)
    whole, parts = (
        torch.autograd.grad(ssd_scan(*tensors, chunk=8, segment=segment)[0].sum(), tensors)
        for segment in (100, 32)
    )
    for got, expected in zip(parts, whole, strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def kept_bytes(tensors: list[torch.Tensor], segment: int) -> int:
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = ssd_scan(*tensors, segment=segment)
    assert output[0].requires_grad
    return sum(storages.values())


def test_only_inputs_and_states_are_kept():
    tensors = inputs(1024)
    given = sum(t.nbytes for t in tensors)
    states = 1024 // 128 * tensors[0].shape[0] * 4 * 8 * 6 * 4
    assert kept_bytes(tensors, 128) <= given + states
    assert kept_bytes(tensors, 1024) > 4 * given
