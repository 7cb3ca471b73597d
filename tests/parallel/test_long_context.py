"""Context parallelism is exact: loss and every gradient at CP 2 and CP 4 are CP 1's, and no [queries, keys] is made."""

from __future__ import annotations

import long_context
import pytest
import torch
import warm
from long_context import LENGTH, MODELS, WORLD

TOLERANCE = 1e-5
KINDS = pytest.mark.parametrize("kind", MODELS)
SIZES = pytest.mark.parametrize("size", [2, 4])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("long-context")
    warm.ranks(long_context.main, folder, world=WORLD)
    return torch.load(folder / "results.pt", weights_only=True)


def gaps(found, expected) -> dict[str, float]:
    """Per parameter, the largest difference over the largest gradient."""
    return {
        name: float((found["gradients"][name] - gradient).abs().max() / gradient.abs().max())
        for name, gradient in expected["gradients"].items()
    }


@KINDS
@SIZES
def test_same_loss_and_gradients_as_one_rank(results, kind, size):
    found, expected = results[f"{kind}-cp{size}"], results[f"{kind}-cp1"]
    assert abs(found["loss"] / expected["loss"] - 1) <= TOLERANCE
    worst = gaps(found, expected)
    assert max(worst.values()) <= TOLERANCE, worst


@KINDS
def test_a_wrong_chunk_order_is_seen(results, kind):
    assert max(gaps(results[f"{kind}-wrong-order"], results[f"{kind}-cp1"]).values()) > 1e-2


@KINDS
@SIZES
def test_nothing_of_queries_times_keys_is_made(results, kind, size):
    assert results[f"{kind}-cp{size}"]["largest"] < LENGTH // size * LENGTH


def test_nor_under_a_window_on_one_rank(results):
    assert results["windowed-cp1"]["largest"] < LENGTH * LENGTH / 8
