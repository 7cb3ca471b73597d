"""CKA and its estimators, against their definitions written out in numpy, and where the answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from megatron_prism.analysis.cka.bootstrap import draw_resamples, resampled, spread
from megatron_prism.analysis.cka.minibatch import ExactCKA, MinibatchCKA
from megatron_prism.analysis.cka.similarity import (
    chance_cka,
    fault,
    gram,
    gram_distance,
    linear_cka,
    recentred,
    unbiased_cka,
    unbiased_hsic,
)
from megatron_prism.errors import ConfigError

# More inputs than features, and fewer: the value is computed from features and from Gram matrices.
TALL, WIDE = (60, 12, 7), (20, 50, 9)
EXACT = pytest.approx


def related(inputs, first, second, seed=0, noise=0.7):
    """Two representations of which the second is a noisy map of the first, with means far from zero."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(inputs, first)) + generator.normal(3, 1, size=first)
    mapped = x @ generator.normal(size=(first, second)) / first**0.5
    return x, mapped + noise * generator.normal(size=(inputs, second)) + 5


def by_definition(x, y):
    """The paper's formula, with centred columns."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def hsic_by_definition(x, y):
    """HSIC_1 as Song et al. 2012 write it: a sum over four different inputs, here by their traces and sums."""
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n, one = len(k), np.ones(len(k))
    return (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    ) / (n * (n - 3))


def orthogonal(size, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@pytest.mark.parametrize("sizes", [TALL, WIDE])
def test_cka_is_the_papers_definition_and_not_that_of_features_that_are_not_centred(sizes):
    x, y = related(*sizes)
    assert linear_cka(x, y) == EXACT(by_definition(x, y), rel=1e-12)
    assert linear_cka(y, x) == EXACT(linear_cka(x, y), rel=1e-12)
    uncentred = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert abs(linear_cka(x, y) - uncentred) > 0.1


@pytest.mark.parametrize("sizes", [TALL, WIDE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotation_scale_and_shift_change_nothing_but_other_maps_do(sizes, dtype):
    features = sizes[1]
    x = torch.as_tensor(related(*sizes)[0]).to(dtype)
    turned = x.double() @ torch.as_tensor(orthogonal(features)) * -170.0 + 11
    stretched = x.double() * torch.logspace(0, 1, features)
    for value in (linear_cka, unbiased_cka):
        assert value(x, turned) == EXACT(1, abs=1e-6)
        assert value(x, stretched) < 0.99
    assert linear_cka(x, x.flip(0)) < 0.9


def test_inputs_in_bf16_are_computed_with_in_fp64():
    x, y = (torch.as_tensor(each).to(torch.bfloat16) for each in related(*WIDE))
    assert linear_cka(x, y) == EXACT(by_definition(x.double().numpy(), y.double().numpy()), rel=1e-12)


@pytest.mark.parametrize("sizes", [TALL, WIDE])
def test_unbiased_cka_is_that_of_song_and_others(sizes):
    x, y = related(*sizes)
    assert unbiased_hsic(torch.tensor(x @ x.T), torch.tensor(y @ y.T)) == EXACT(
        hsic_by_definition(x, y), rel=1e-9
    )
    expected = hsic_by_definition(x, y) / np.sqrt(hsic_by_definition(x, x) * hsic_by_definition(y, y))
    assert unbiased_cka(x, y) == EXACT(expected, rel=1e-9)
    assert abs(unbiased_cka(x, y) - linear_cka(x, y)) > 0.01


def test_the_estimate_of_hsic_has_no_bias():
    """Its mean over all samples of five of eight inputs is its value for the eight; the biased one's mean is not."""
    x, y = related(8, 3, 2)
    kept = [list(each) for each in itertools.combinations(range(8), 5)]

    def biased(x, y):
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        return np.linalg.norm(y.T @ x) ** 2 / (len(x) - 1) ** 2

    unbiased = np.mean(
        [unbiased_hsic(torch.tensor(x[i] @ x[i].T), torch.tensor(y[i] @ y[i].T)) for i in kept]
    )
    assert unbiased == EXACT(hsic_by_definition(x, y), rel=1e-9)
    assert np.mean([biased(x[i], y[i]) for i in kept]) > 1.05 * biased(x, y)


@pytest.mark.parametrize(("inputs", "first", "second"), [(200, 5, 9), (100, 100, 50), (40, 400, 200)])
def test_independent_noise_has_the_expected_cka_which_is_near_one_for_few_inputs(inputs, first, second):
    """E||Y'X||^2 = N d1 d2 and E||X'X||^2 = N d (N + d + 1) for N = n - 1 degrees of freedom (Wishart)."""
    generator = np.random.default_rng(2)
    draws = [
        (generator.normal(size=(inputs, first)), generator.normal(size=(inputs, second))) for _ in range(30)
    ]
    expected = (first * second / ((inputs + first) * (inputs + second))) ** 0.5
    found = np.array([linear_cka(x, y) for x, y in draws])
    assert found.mean() == EXACT(expected, rel=0.03)
    assert np.mean([chance_cka(x, y) for x, y in draws]) == EXACT(expected, rel=0.03)
    without_bias = np.array([unbiased_cka(x, y) for x, y in draws])
    assert abs(without_bias.mean()) < 4 * without_bias.std() / 30**0.5
    assert expected > 0.86 if inputs == 40 else expected < 0.45


def test_chance_is_the_mean_over_all_orders_of_the_inputs():
    x, y = related(6, 4, 3)
    orders = [linear_cka(x, y[list(order)]) for order in itertools.permutations(range(6))]
    assert chance_cka(x, y) == EXACT(np.mean(orders), rel=1e-9)


def test_one_minus_cka_of_nearly_equal_models_keeps_its_digits():
    x = related(*TALL)[0]
    moved = np.zeros_like(x)
    moved[:, 0] = np.random.default_rng(4).normal(size=len(x))
    small, smaller = (gram_distance(gram(x), gram(x + step * moved)) for step in (1e-5, 1e-9))
    assert smaller / small == EXACT(1e-8, rel=1e-3)
    cancelled = 1 - linear_cka(x, x + 1e-9 * moved)
    assert abs(cancelled / smaller - 1) > 0.1
    assert gram_distance(gram(x), gram(related(*TALL)[1])) == EXACT(1 - linear_cka(*related(*TALL)), rel=1e-9)


@pytest.mark.parametrize("batches", [[60], [1, 59], [7, 13, 40], [20, 20, 20]])
def test_exact_minibatches_give_the_value_of_all_inputs(batches):
    x, y = related(*TALL)
    streamed = ExactCKA()
    assert streamed.value() is None
    edges = np.cumsum([0, *batches])
    for start, end in itertools.pairwise(edges):
        streamed.update(x[start:end] + 1e6, y[start:end])
    assert streamed.inputs == 60
    # 1e-9: adding a million costs x seven digits.
    assert streamed.value() == EXACT(linear_cka(x, y), rel=1e-9)


def test_minibatches_of_unbiased_hsic_give_the_estimator_of_nguyen_and_others():
    x, y = related(*TALL)
    estimate = MinibatchCKA()
    assert estimate.value() is None
    parts = [(x[start : start + 15], y[start : start + 15]) for start in range(0, 60, 15)]
    for part in parts:
        estimate.update(*part)
    cross, own, other = (
        sum(hsic_by_definition(part[a], part[b]) for part in parts) for a, b in ((0, 1), (0, 0), (1, 1))
    )
    assert estimate.value() == EXACT(cross / np.sqrt(own * other), rel=1e-9)
    assert estimate.value() != EXACT(unbiased_cka(x, y), abs=1e-4)
    with pytest.raises(ConfigError, match="a batch has 14 inputs, the first had 15"):
        estimate.update(x[:14], y[:14])


def test_what_has_no_similarity_gives_none_and_a_reason():
    x, _ = related(*TALL)
    constant = np.full((60, 4), 0.1) + np.arange(4)
    assert fault(x) is None
    assert fault(constant) == "is the same for every input"
    assert fault(np.where(np.arange(60)[:, None] == 3, np.nan, x)) == "has values that are not finite"
    for value in (linear_cka, unbiased_cka, chance_cka):
        assert value(x, constant) is None
        assert value(x * np.inf, x) is None
    streamed = ExactCKA()
    streamed.update(x, np.ones((60, 2)))
    assert streamed.value() is None
    # A tiny representation is not a constant one.
    assert linear_cka(x * 1e-200, x * 1e200) == EXACT(1)


def test_shapes_that_do_not_fit_are_one_line():
    x, y = related(*TALL)
    with pytest.raises(ConfigError, match="representations of 60 and of 59 inputs cannot be compared"):
        linear_cka(x, y[1:])
    with pytest.raises(ConfigError, match=r"shape \[60\]; it must be \[inputs, features\]"):
        linear_cka(x[:, 0], y)
    with pytest.raises(ConfigError, match="3 inputs: the unbiased estimate of HSIC needs at least 4"):
        unbiased_cka(x[:3], y[:3])
    with pytest.raises(ConfigError, match=r"shapes \[5, 12\] and \[4, 7\]"):
        ExactCKA().update(x[:5], y[:4])


def test_the_bootstrap_is_cka_of_the_drawn_inputs():
    x, y = related(*TALL)
    chosen = draw_resamples(60, 30, 20, seed=5)
    assert chosen.shape == (20, 30)
    assert all(len(set(row.tolist())) == 30 for row in chosen)
    assert not torch.equal(chosen, draw_resamples(60, 30, 20, seed=6))
    values = [by_definition(x[row.numpy()], y[row.numpy()]) for row in chosen]
    found = spread(*resampled([gram(x), gram(y)], chosen))
    assert found.mean == EXACT(np.mean(values), rel=1e-9)
    assert found.std == EXACT(np.std(values, ddof=1), rel=1e-9)
    assert [found.low, found.high] == EXACT(np.percentile(values, [2.5, 97.5]), rel=1e-9)


def test_a_resample_of_equal_rows_has_no_cka_although_rounding_leaves_something_of_them():
    left = []
    for size in range(20, 60):
        equal = torch.full((size, size), 0.1, dtype=torch.float64)
        left.append(float(recentred(equal).norm()))
        assert resampled([equal], torch.arange(size)[None])[0].isnan().all()
    assert max(left) > 0
    x, y = related(*TALL)
    x[30:] = x[30]
    rows = torch.stack([torch.arange(30), torch.arange(30, 60)])
    assert spread(*resampled([gram(x), gram(y)], rows)) is None
    assert spread(*resampled([gram(x), gram(y)], rows[:1].repeat(2, 1))) is not None
