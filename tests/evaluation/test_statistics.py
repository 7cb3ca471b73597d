from __future__ import annotations

import numpy as np
import pytest

from megatron_prism.evaluation.statistics.averages import average_of_benchmarks, average_of_domains
from megatron_prism.evaluation.statistics.intervals import (
    bootstrap_interval,
    pass_rate,
    wilson_interval,
)
from megatron_prism.evaluation.statistics.paired import detectable_alone, paired_test
from megatron_prism.evaluation.statistics.repeated import majority_at_k, pass_at_k


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
    ours = [(e.low, e.high) for e in map(pass_rate, draws)]
    assert 0.93 <= coverage(ours, 0.5) <= 0.97
    # Negative control: counting all 960 samples as independent trials covers far too rarely.
    naive = [wilson_interval(int(d.sum()), d.size) for d in draws]
    assert coverage(naive, 0.5) < 0.6


# Problems and samples of AIME, MATH500, LiveCodeBench, Codeforces and GPQA-Diamond in the paper.
SIZES = [(30, 64), (500, 64), (279, 3), (453, 3), (198, 3)]


@pytest.mark.parametrize(("problems", "samples"), SIZES)
@pytest.mark.parametrize("truth", [0.02, 0.1, 0.4, 0.8])
def test_intervals_of_the_paper_s_suites_cover_as_promised(problems, samples, truth):
    """Most problems are solved nearly always or nearly never, as in real results: a beta distribution, a + b = 0.7."""
    generator = np.random.default_rng(7)
    difficulty = generator.beta(0.7 * truth, 0.7 * (1 - truth), size=(1000, problems))
    draws = generator.binomial(samples, difficulty) / samples
    # A column of means has the same rate and variance as the samples themselves.
    made = [pass_rate(np.repeat(draw[:, None], 2, axis=1)) for draw in draws]
    covered = coverage([(each.low, each.high) for each in made], truth)
    # A standard error of 1000 simulations is 0.7 points.
    assert 0.93 - 0.015 <= covered <= 0.97 + 0.015
    if (problems, truth) in ((30, 0.1), (30, 0.02)):
        # Negative control: what was used before this one.
        before = [bootstrap_interval(draw, resamples=500) for draw in draws[:400]]
        assert coverage(before, truth) < 0.92


def test_one_sample_per_problem_is_wilson():
    column = np.arange(40)[:, None] < 10
    made = pass_rate(column)
    assert made.interval == "wilson"
    assert (made.rate, made.low, made.high) == (0.25, *wilson_interval(10, 40))


def test_several_samples_are_clustered():
    data = clustered(np.random.default_rng(3), 30, 4)
    made = pass_rate(data)
    assert made.interval == "wilson, effective sample size"
    assert made.rate == pytest.approx(data.mean())
    assert made.low < made.rate < made.high
    # With many problems it is the usual interval of a mean of problems.
    many = clustered(np.random.default_rng(3), 4000, 4)
    half = 1.96 * many.mean(axis=1).std() / np.sqrt(4000)
    assert (pass_rate(many).high - pass_rate(many).low) / 2 == pytest.approx(half, rel=0.01)


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


def test_the_majority_of_all_samples_and_of_some():
    answers, correct = ["2", "2", "3", None, "2", "4"], [True, True, False, False, True, False]
    assert majority_at_k(answers, correct, 6) == 1.0
    # Two answers lead together, and one of them is right.
    assert majority_at_k(["2", "3"], [True, False], 2) == 0.5
    assert majority_at_k([None, None], [False, False], 2) == 0.0
    # One of six at random: three of them are right.
    assert majority_at_k(answers, correct, 1) == pytest.approx(0.5, abs=0.1)
    # All subsets of three, counted by hand: two or three twos win; one two shares with two others or one.
    from itertools import combinations

    expected = np.mean(
        [
            majority_at_k([answers[i] for i in c], [correct[i] for i in c], 3)
            for c in combinations(range(6), 3)
        ]
    )
    assert majority_at_k(answers, correct, 3) == pytest.approx(expected, abs=0.05)
    with pytest.raises(ValueError):
        majority_at_k(answers, correct, 7)


def test_the_averages_are_those_of_the_paper_and_of_its_project_page():
    # Granite-3.3 base: Table 6 has the scores, Table 11 the average of domains, the project page that of benchmarks.
    names = ("livecodebench", "codeforces", "gpqa_diamond", "aime24", "aime25", "math500")
    base = dict(zip(names, (2.15, 1.99, 22.56, 0.46, 0.31, 26.09), strict=True))
    assert average_of_domains(base) == pytest.approx(11.19, abs=0.01)
    assert average_of_benchmarks(base) == pytest.approx(8.93, abs=0.01)
    del base["aime25"]
    assert average_of_domains(base) is None
    assert average_of_benchmarks(base) is None


def test_what_is_detectable_is_known_from_one_model_if_the_other_is_uncorrelated():
    generator = np.random.default_rng(2)
    rates = generator.beta(0.7, 0.7, size=(2, 500, 198))
    alone = np.mean([detectable_alone(row) for row in rates[0]])
    paired = np.mean([paired_test(*pair).detectable for pair in zip(*rates, strict=True)])
    assert alone == pytest.approx(paired, rel=0.02)
    correlated = paired_test(rates[0][0], 0.8 * rates[0][0] + 0.2 * rates[1][0])
    assert correlated.detectable < 0.5 * detectable_alone(rates[0][0])
    assert detectable_alone([0.5, 0.5]) is None
