from __future__ import annotations

import numpy as np
import pytest

from megatron_prism.evaluation.statistics import (
    Estimate,
    bootstrap_interval,
    difference_interval,
    pass_at_k,
    pass_rate,
    wilson_interval,
)


def test_wilson_matches_published_values():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    for successes, trials, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ]:
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_ends():
    assert wilson_interval(0, 50)[0] == 0.0
    assert wilson_interval(50, 50)[1] == 1.0
    low, high = wilson_interval(50, 50)
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(0, 50))


def test_more_confidence_is_wider_and_more_trials_are_narrower():
    def width(successes, trials, confidence):
        low, high = wilson_interval(successes, trials, confidence)
        return high - low

    assert width(5, 10, 0.8) < width(5, 10, 0.95) < width(5, 10, 0.99)
    assert width(500, 1000, 0.95) < width(50, 100, 0.95)


@pytest.mark.parametrize(
    ("s", "n", "c"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)]
)
def test_impossible_counts_are_refused(s, n, c):
    with pytest.raises(ValueError):
        wilson_interval(s, n, c)


def coverage(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize(("truth", "trials"), [(0.05, 100), (0.3, 60), (0.5, 40), (0.9, 150)])
def test_wilson_covers_as_promised(truth, trials):
    counts = np.random.default_rng(1).binomial(trials, truth, size=3000)
    table = {int(c): wilson_interval(int(c), trials) for c in np.unique(counts)}
    assert 0.93 <= coverage([table[int(c)] for c in counts], truth) <= 0.98


def clustered(generator: np.random.Generator, problems: int, samples: int) -> np.ndarray:
    """Samples of a problem share its difficulty: rates are 0.1 or 0.9, so they are not independent."""
    rates = generator.choice([0.1, 0.9], size=problems)
    return generator.random((problems, samples)) < rates[:, None]


def test_cluster_interval_covers_and_a_naive_one_does_not():
    generator = np.random.default_rng(2)
    draws = [clustered(generator, 60, 16) for _ in range(400)]
    ours = [(e.low, e.high) for e in (pass_rate(d, seed=i) for i, d in enumerate(draws))]
    assert 0.91 <= coverage(ours, 0.5) <= 0.98
    # Negative control: counting all 960 samples as independent trials covers far too rarely.
    naive = [wilson_interval(int(d.sum()), d.size) for d in draws]
    assert coverage(naive, 0.5) < 0.6


def test_one_sample_per_problem_is_wilson():
    column = np.arange(40)[:, None] < 10
    made = pass_rate(column)
    assert made.interval == "wilson"
    assert (made.rate, made.low, made.high) == (0.25, *wilson_interval(10, 40))


def test_several_samples_are_clustered_and_repeatable():
    data = clustered(np.random.default_rng(3), 30, 4)
    made = pass_rate(data, seed=5)
    assert made.interval == "bootstrap over problems"
    assert made.rate == pytest.approx(data.mean())
    assert made == pass_rate(data, seed=5)
    assert made != pass_rate(data, seed=6)
    assert made.low < made.rate < made.high


def test_no_success_at_all_is_not_certainty():
    made = pass_rate(np.zeros((50, 8)))
    assert (made.rate, made.low) == (0.0, 0.0)
    assert made.high == pytest.approx(wilson_interval(0, 50)[1])
    assert made.interval == "wilson"


def test_bootstrap_width_is_that_of_the_mean():
    data = np.random.default_rng(4).random(400)
    low, high = bootstrap_interval(data)
    expected = 2 * 1.96 * data.std() / np.sqrt(len(data))
    assert high - low == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("bad", [[], [[]], [True, False]])
def test_empty_or_flat_verdicts_are_refused(bad):
    with pytest.raises(ValueError):
        pass_rate(bad)
    with pytest.raises(ValueError):
        bootstrap_interval([])


def test_pass_at_k_is_the_exact_expectation():
    assert pass_at_k(5, 0, 3) == 0.0
    assert pass_at_k(5, 5, 1) == 1.0
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    generator = np.random.default_rng(5)
    simulated = np.mean([generator.permutation([1] * 3 + [0] * 7)[:4].max() for _ in range(4000)])
    assert pass_at_k(10, 3, 4) == pytest.approx(simulated, abs=0.03)
    with pytest.raises(ValueError):
        pass_at_k(3, 1, 4)


def test_difference_matches_newcombe_and_covers():
    def estimate(successes, trials):
        return Estimate(successes / trials, *wilson_interval(successes, trials), 0.95, "wilson")

    # Newcombe 1998 (Statistics in Medicine 17:873), table II, method 10, case (a): 56/70 - 48/80.
    assert difference_interval(estimate(48, 80), estimate(56, 70)) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=5e-5
    )
    generator = np.random.default_rng(6)
    pairs = zip(generator.binomial(80, 0.1, 2000), generator.binomial(80, 0.4, 2000), strict=True)
    intervals = [difference_interval(estimate(int(a), 80), estimate(int(b), 80))[1:] for a, b in pairs]
    assert 0.93 <= coverage(intervals, 0.3) <= 0.98
