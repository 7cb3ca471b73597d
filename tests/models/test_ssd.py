"""The chunked scan against the recurrence, token by token, in float64."""

from __future__ import annotations

import pytest
import torch

from megatron_prism.models.layers.ssd import ssd_scan, ssd_step


def inputs(length: int, groups: int = 2, heads: int = 4):
    g = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, heads, 8, generator=g)
    dt = torch.rand(2, length, heads, generator=g)
    a = -torch.rand(heads, generator=g) * 4
    b, c = (torch.randn(2, length, groups, 6, generator=g) for _ in range(2))
    return x, dt, a, b, c, torch.randn(heads, generator=g)


def recurrence(x, dt, a, b, c, d, first=None):
    x, dt, a, b, c, d = (t.double() for t in (x, dt, a, b, c, d))
    ratio = x.shape[2] // b.shape[2]
    state = x.new_zeros(2, x.shape[2], 8, 6) if first is None else first.double()
    ys = []
    for t in range(x.shape[1]):
        keys, queries = (v[:, t].repeat_interleave(ratio, 1) for v in (b, c))
        state = torch.exp(dt[:, t] * a)[..., None, None] * state
        state = state + (dt[:, t, :, None] * x[:, t])[..., None] * keys[:, :, None]
        ys.append((state * queries[:, :, None]).sum(-1) + d[:, None] * x[:, t])
    return torch.stack(ys, 1), state


@pytest.mark.parametrize("length", [1, 7, 32, 100])
@pytest.mark.parametrize("chunk", [8, 32])
def test_scan_equals_recurrence(length, chunk):
    args = inputs(length)
    y, state = ssd_scan(*args, chunk=chunk)
    expected, last = recurrence(*args)
    assert torch.allclose(y.double(), expected, atol=2e-5)
    assert torch.allclose(state.double(), last, atol=2e-5)


def test_gradients_equal_the_recurrence():
    args = [t.requires_grad_() for t in inputs(40)]
    ssd_scan(*args, chunk=16)[0].square().sum().backward()
    mine = [t.grad.clone() for t in args]
    for t in args:
        t.grad = None
    recurrence(*args)[0].square().sum().backward()
    for got, t in zip(mine, args, strict=True):
        assert torch.allclose(got, t.grad, rtol=1e-3, atol=1e-3 * t.grad.abs().max().item())


def test_carried_state_and_single_steps_continue_the_scan():
    x, dt, a, b, c, d = inputs(33)
    whole, last = ssd_scan(x, dt, a, b, c, d)
    first, state = ssd_scan(x[:, :20], dt[:, :20], a, b[:, :20], c[:, :20], d)
    second, _ = ssd_scan(x[:, 20:], dt[:, 20:], a, b[:, 20:], c[:, 20:], d, state=state)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-5)
    stepped = [ssd_step(x[:, t], dt[:, t], a, b[:, t], c[:, t], d, state) for t in range(20, 33)]
    assert torch.allclose(torch.stack(stepped, 1), whole[:, 20:], atol=1e-5)
    assert torch.allclose(state, last, atol=1e-5)
    without_state, _ = ssd_scan(x[:, 20:], dt[:, 20:], a, b[:, 20:], c[:, 20:], d)
    assert not torch.allclose(without_state, whole[:, 20:], atol=1e-3)


@pytest.mark.parametrize("length", [5, 16, 50])
def test_every_gradient_of_the_scan_equals_the_recurrence(length):
    """With a state carried in, a gradient of the last state, and heads that share a group."""
    x, dt, a, b, c, d = inputs(length)
    draw = torch.Generator().manual_seed(3)
    first, factor = torch.randn(2, 4, 8, 6, generator=draw), torch.randn(2, 4, 8, 6, generator=draw)
    leaves = [each.requires_grad_() for each in (x, dt, a, b, c, d, first)]

    def loss(y, state):
        return y.sin().sum() + (state * factor).sum()

    mine = torch.autograd.grad(loss(*ssd_scan(*leaves[:-1], state=first, chunk=16)), leaves)
    expected = torch.autograd.grad(loss(*recurrence(*leaves[:-1], first=first)), leaves)
    for got, reference in zip(mine, expected, strict=True):
        assert torch.allclose(got, reference, rtol=1e-4, atol=2e-5 * float(reference.abs().max()))
