"""Functions with a backward pass of their own, and what `recompute=selective` computes again: the same gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny_models import randomize
from torch import Tensor
from torch.nn import functional as F

from megatron_prism.models.build import build_model
from megatron_prism.models.layers import mamba_scan, recompute
from megatron_prism.models.layers.activation import squared_relu, swiglu
from megatron_prism.models.layers.norm import GatedRMSNorm, rms_norm
from megatron_prism.models.layers.rotary import rotate
from megatron_prism.models.layers.row_documents import RowDocuments
from megatron_prism.models.layers.wide_attention import wide_attention
from megatron_prism.platform.process_groups import session
from megatron_prism.study.small_models import MODELS

MAKE = torch.Generator().manual_seed(7)


@pytest.fixture(autouse=True, scope="module")
def running_session() -> Iterator[None]:
    with session(seed=1):
        yield


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=MAKE, dtype=torch.float64).requires_grad_()


def test_activation_functions_have_exact_gradients():
    x = random(5, 3, 16)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(swiglu(x), F.silu(gate) * up)
    torch.testing.assert_close(squared_relu(x), F.relu(x).square())
    assert torch.autograd.gradcheck(swiglu, x)
    assert torch.autograd.gradcheck(squared_relu, x)


def test_the_norm_has_exact_gradients():
    x, weight = random(5, 3, 16), random(16)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), F.rms_norm(x, (16,), weight, 1e-3))
    assert torch.autograd.gradcheck(lambda *given: rms_norm(*given, 1e-3), (x, weight))


def test_the_gated_norm_has_the_gradients_of_its_formula():
    norm = GatedRMSNorm(16, eps=1e-3, group_size=8)
    y, z = (random(4, 3, 16).float().detach().requires_grad_() for _ in range(2))
    with torch.no_grad():
        norm.weight.copy_(random(16))
    h = (y * F.silu(z)).unflatten(-1, (2, 8))
    expected = F.rms_norm(h, (8,), None, 1e-3).flatten(-2) * norm.weight
    found, probe = norm(y, z), random(4, 3, 16).float().detach()
    torch.testing.assert_close(found, expected)
    inputs = (y, z, norm.weight)
    for one, other in zip(
        torch.autograd.grad(found, inputs, probe), torch.autograd.grad(expected, inputs, probe), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_rotation_is_megatrons():
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    x, half = random(6, 2, 3, 8), random(6, 1, 1, 4).detach()
    angles = torch.cat([half, half], -1)
    torch.testing.assert_close(rotate(x, angles), _apply_rotary_pos_emb_bshd(x, angles))
    assert torch.autograd.gradcheck(lambda given: rotate(given, angles), x)


def gradients(
    kind: str, mode: str, documents: RowDocuments | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    model = build_model(replace(MODELS[kind], vocab_size=96), recompute=mode).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    randomize(model, torch.Generator().manual_seed(3), dt_bias=-1)
    tokens = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(5))
    given = {} if documents is None else {"packed_seq_params": documents}
    positions = torch.arange(40).expand(2, 40)
    losses = model(tokens, positions, None, labels=tokens.roll(-1, 1), **given)
    losses.sum().backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pieces", [2048, 16])
def test_selective_recomputation_gives_the_same_gradients(monkeypatch, kind, packed, pieces):
    monkeypatch.setattr(mamba_scan, "SEGMENT", 2048)
    documents = RowDocuments([[11, 20], [33]], 40) if packed else None
    losses, expected = gradients(kind, "none", documents)
    monkeypatch.setattr(mamba_scan, "SEGMENT", pieces)
    again, found = gradients(kind, "selective", documents)
    torch.testing.assert_close(again, losses, rtol=1e-6, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_recipe_for_another_tensor_would_be_seen(monkeypatch):
    """Negative control: the comparison is red if a linear layer's input is not computed again correctly."""
    _, expected = gradients("dense", "none")
    compute = recompute.Recipe.compute
    monkeypatch.setattr(recompute.Recipe, "compute", lambda recipe: compute(recipe) * 1.01)
    _, found = gradients("dense", "selective")
    wrong = [name for name in expected if not torch.allclose(found[name], expected[name], rtol=1e-3)]
    assert any("linear_qkv" in name for name in wrong)
    assert any("linear_fc2" in name for name in wrong)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_in_fp32_is_closer_to_the_exact_one(groups):
    query, key, value = (random(2, heads, 33, 16) for heads in (4, groups, groups))
    exact = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    probe = random(2, 4, 33, 16).detach()
    expected = torch.autograd.grad(exact, (query, key, value), probe)

    def errors(wide: bool) -> list[float]:
        low = [each.detach().bfloat16().requires_grad_() for each in (query, key, value)]
        if wide:
            found = wide_attention(*low, 0.3)
        else:
            found = F.scaled_dot_product_attention(*low, is_causal=True, scale=0.3, enable_gqa=True)
        gradients = torch.autograd.grad(found, low, probe.bfloat16())
        pairs = zip((found, *gradients), (exact, *expected), strict=True)
        return [float((one.double() - other).norm() / other.norm()) for one, other in pairs]

    wide, narrow = errors(True), errors(False)
    assert max(wide) < 6e-3
    assert all(one < 1.1 * other for one, other in zip(wide, narrow, strict=True))
