"""The chunked cross entropy: exact gradients, bounded memory, and the same losses as plain logits in every model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_prism.models.build import build_model
from megatron_prism.models.layers import token_loss
from megatron_prism.models.layers.output_layer import install_vocabulary_limit
from megatron_prism.models.layers.token_loss import Head, token_losses
from megatron_prism.platform.process_groups import session
from megatron_prism.study.small_models import MODELS


@pytest.fixture(autouse=True, scope="module")
def running_session() -> Iterator[None]:
    with session(seed=1):
        yield


@pytest.fixture(params=["kept", "computed again"])
def memory(request, monkeypatch):
    if request.param != "kept":
        monkeypatch.setattr(token_loss, "KEPT_BYTES", 0)
    return request.param


def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(token_loss, "CACHED_BYTES", 1)
    monkeypatch.setattr(token_loss, "FEWEST_TOKENS", 64)


def head(**settings) -> Head:
    from megatron.core import parallel_state

    return Head(parallel_state.get_tensor_model_parallel_group(), **settings)


def inputs(dtype: torch.dtype, seq=100, batch=2, vocabulary=53, hidden=24) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(3)
    h = torch.randn(seq, batch, hidden, generator=make, dtype=torch.float64).to(dtype)
    w = torch.randn(vocabulary, hidden, generator=make, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, vocabulary - 6, (seq, batch), generator=make)
    return h.requires_grad_(), w.requires_grad_(), labels


def plain(h: Tensor, w: Tensor, labels: Tensor, scaling: float, limit: int | None) -> Tensor:
    logits = (h @ w.t())[..., :limit] / scaling
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


def gradients(losses: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    # Every token has its own gradient, as in reinforcement learning; some are masked.
    weights = torch.randn(losses.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights[::5] = 0
    return torch.autograd.grad((losses * weights.to(losses.dtype)).sum(), tensors)


@pytest.mark.parametrize(("scaling", "limit"), [(1.0, None), (3.0, None), (3.0, 47)])
def test_losses_and_gradients_are_exact(memory, monkeypatch, scaling, limit):
    small_chunks(monkeypatch)  # of 64 tokens: three whole ones and a rest
    h, w, labels = inputs(torch.float64)
    expected = plain(h, w, labels, scaling, limit)
    found = token_losses(h, w, labels, head(scaling=scaling, limit=limit))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found, h, w), gradients(expected, h, w), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_an_error_in_one_token_would_be_seen():
    """Negative control: the same comparison is red if one of 200 labels is wrong."""
    h, w, labels = inputs(torch.float64)
    wrong = labels.clone()
    wrong[71, 1] = (wrong[71, 1] + 1) % 40
    expected, found = plain(h, w, labels, 1.0, None), token_losses(h, w, wrong, head())
    assert not torch.allclose(found, expected, rtol=1e-12)
    assert not torch.allclose(gradients(found, w)[0], gradients(expected, w)[0], rtol=1e-11)


def test_kept_and_recomputed_exponentials_give_the_same_bits(monkeypatch):
    h, w, labels = inputs(torch.bfloat16)
    kept = gradients(token_losses(h, w, labels, head()), h, w)
    monkeypatch.setattr(token_loss, "KEPT_BYTES", 0)
    again = gradients(token_losses(h, w, labels, head()), h, w)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_bf16_gradients_of_the_weight_do_not_lose_small_chunks(monkeypatch):
    """512 chunks: summed in bf16, the later ones would vanish."""
    small_chunks(monkeypatch)
    h, w, labels = inputs(torch.bfloat16, seq=64 * 512, batch=1)
    with torch.no_grad():
        h.abs_()
    found = torch.autograd.grad(token_losses(h, w, labels, head()).sum(), w)[0]
    h64, w64 = (t.detach().double().requires_grad_() for t in (h, w))
    exact = torch.autograd.grad(plain(h64, w64, labels, 1.0, None).sum(), w64)[0]
    assert ((found.double() - exact).norm() / exact.norm()) < 5e-3


def test_extreme_logits_stay_finite():
    h, w, labels = inputs(torch.float32)
    losses = token_losses(h * 1e4, w, labels, head())
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(losses.sum(), (h, w)))


def test_no_logits_are_kept_for_backward():
    """Saved for backward: the hidden states, the weight, and six small vectors; the logits would be 100 times that."""
    h, w, labels = inputs(torch.float32, seq=512, batch=1, vocabulary=50_000, hidden=8)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_losses(h, w, labels, head())
    weight_and_hidden = 4 * 8 * (50_000 + 512)
    assert sum(saved.values()) - weight_and_hidden < 512 * 40
    assert 100 * (sum(saved.values()) - weight_and_hidden) < 512 * 50_000 * 4


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("limit", [None, 2000])
def test_a_model_with_labels_returns_the_cross_entropy_of_its_logits(kind, limit):
    model = build_model(MODELS[kind])
    if limit is not None:
        install_vocabulary_limit(model.output_layer, limit)
    tokens = torch.randint(0, 2000, (2, 12), generator=torch.Generator().manual_seed(5))
    positions, labels = torch.arange(12).expand(2, 12), tokens.roll(-1, 1)
    logits = model(tokens, positions, None)
    found = model(tokens, positions, None, labels=labels)
    expected = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    used = [p for p in model.parameters() if p.requires_grad]
    for one, other in zip(
        torch.autograd.grad(found.sum(), used), torch.autograd.grad(expected.sum(), used), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert model(tokens, positions, None).shape[-1] == 2048  # logits again after a call with labels
