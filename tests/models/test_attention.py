"""Blockwise attention compared with plain float64 attention, forward and backward, and its memory use."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_prism.models.layers import blockwise
from megatron_prism.models.layers.attention import SDPACoreAttention
from megatron_prism.models.layers.blockwise import Blocks, blockwise_attention

SCALE = 0.3


def inputs(queries: int, keys: int, heads: int = 4, groups: int = 2, dtype=torch.float64):
    g = torch.Generator().manual_seed(queries + keys)
    shapes = (queries, 2, heads, 8), (keys, 2, groups, 8), (keys, 2, groups, 8)
    return [torch.randn(shape, generator=g, dtype=dtype).requires_grad_() for shape in shapes]


def positions(starts: list[int], queries: int) -> torch.Tensor:
    piece = queries // len(starts)
    return torch.cat([torch.arange(start, start + piece) for start in starts])


def plain(query, key, value, starts, reach):
    """All scores at once, masked by position."""
    sharing = query.shape[2] // key.shape[2]
    key, value = (t.repeat_interleave(sharing, 2) for t in (key, value))
    distance = positions(starts, len(query))[:, None] - torch.arange(len(key))
    hidden = (distance < 0) | (distance > (math.inf if reach is None else reach))
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) * SCALE
    return torch.einsum("bhqk,kbhd->qbhd", scores.masked_fill(hidden, -math.inf).softmax(-1), value)


def with_gradients(attention, tensors):
    out = attention(*tensors)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)]


def gap(found, expected) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float(((a - b).abs().max() / b.abs().max().clamp(min=1e-2)).detach()) for a, b in pairs)


@pytest.mark.parametrize(
    ("queries", "keys", "starts"),
    [(40, 40, [0]), (12, 40, [28]), (1, 40, [39]), (20, 40, [0, 30]), (20, 40, [10, 20]), (22, 70, [9, 40])],
)
@pytest.mark.parametrize("reach", [None, 0, 6, 25, 500])
@pytest.mark.parametrize("rows", [2, 14, 256])
@pytest.mark.parametrize("groups", [1, 4])
def test_equals_plain_attention(queries, keys, starts, reach, rows, groups, monkeypatch):
    monkeypatch.setattr(blockwise, "ROWS", rows)
    tensors = inputs(queries, keys, groups=groups)
    found = with_gradients(lambda *t: blockwise_attention(*t, Blocks(starts, SCALE, reach)), tensors)
    assert gap(found, with_gradients(lambda *t: plain(*t, starts, reach), tensors)) < 1e-12


@pytest.mark.parametrize(
    "wrong", [Blocks([0, 29], SCALE, 9), Blocks([0, 30], SCALE, 8), Blocks([0, 30], 0.31, 9)]
)
def test_a_wrong_position_window_or_scale_is_seen(wrong):
    tensors = inputs(20, 40)
    found = with_gradients(lambda *t: blockwise_attention(*t, wrong), tensors)
    assert gap(found, with_gradients(lambda *t: plain(*t, [0, 30], 9), tensors)) > 1e-3


def test_many_blocks_add_up_in_low_precision(monkeypatch):
    monkeypatch.setattr(blockwise, "ROWS", 4)
    tensors = inputs(400, 400, dtype=torch.bfloat16)
    exact = with_gradients(
        lambda *t: plain(*t, [0], None), [t.detach().double().requires_grad_() for t in tensors]
    )
    found = with_gradients(lambda *t: blockwise_attention(*t, Blocks([0], SCALE)), tensors)
    assert gap(found, exact) < 2e-2


def test_backward_drops_what_forward_dropped():
    """The output is linear in the values, so <output, grad> equals <values, their gradient>."""
    torch.manual_seed(0)
    query, key, value = inputs(40, 40)
    out = blockwise_attention(query, key, value, Blocks([0], SCALE, None, 0.5))
    weights = torch.randn_like(out)
    (d_value,) = torch.autograd.grad((out * weights).sum(), value, retain_graph=True)
    assert torch.allclose((value * d_value).sum(), (out * weights).sum())
    assert gap([out], [plain(query, key, value, [0], None)]) > 0.1
    assert gap([blockwise_attention(query, key, value, Blocks([0], SCALE, None, 0.5))], [out]) > 0.1


class Largest(TorchDispatchMode):
    """Elements of the largest tensor any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


def largest_made_and_kept(attention, tensors) -> tuple[int, int]:
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with Largest() as made:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = attention(*tensors)
        out.sum().backward()
    return made.elements, max(kept)


@pytest.mark.parametrize(
    ("starts", "reach"), [([0, 1536], None), ([1024], None), ([0, 1536], 600), ([1024], 1500)]
)
def test_no_tensor_has_queries_times_keys_elements(starts, reach):
    queries, keys = 1024, 2048
    tensors = inputs(queries, keys, dtype=torch.float32)
    made, kept = largest_made_and_kept(
        lambda *t: blockwise_attention(*t, Blocks(starts, SCALE, reach)), tensors
    )
    assert made <= blockwise.ROWS * keys < queries * keys / 2
    assert kept <= max(t.numel() for t in tensors)


def test_a_mask_would_be_seen():
    queries, keys = 1024, 2048
    mask = positions([0, 1536], queries)[:, None] >= torch.arange(keys)

    def masked(query, key, value):
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE, enable_gqa=True)

    made, kept = largest_made_and_kept(masked, inputs(queries, keys, dtype=torch.float32))
    assert made >= queries * keys
    assert kept >= queries * keys


def module(window: int | None = None) -> SDPACoreAttention:
    core = SDPACoreAttention.__new__(SDPACoreAttention)
    torch.nn.Module.__init__(core)
    core.scale, core.dropout, core.reach = SCALE, 0.0, None if window is None else window - 1
    core.cp_group, core.segments, core.decode_cache = SimpleNamespace(size=lambda: 1), None, None
    return core


@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.parametrize("queries", [1, 5, 40])
def test_module_with_a_cache_and_a_window(window, queries):
    tensors = inputs(queries, 40)
    with torch.no_grad() if queries == 1 else contextlib.nullcontext():
        out = module(window)(*tensors)
    expected = plain(*tensors, [40 - queries], None if window is None else window - 1)
    assert out.shape == (queries, 2, 32)
    assert gap([out], [expected.flatten(2)]) < 1e-12
