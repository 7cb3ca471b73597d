"""Means of responses with intervals clustered by problem: against scipy, a bootstrap over problems, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from megatron_prism.evaluation.statistics.clustered import (
    clustered_auroc,
    clustered_difference,
    clustered_mean,
)


def responses(generator, problems, samples, between=1.0, within=0.5, effect=1.0):
    """Values that are alike within a problem, verdicts that depend on them, and the problem of each."""
    clusters = np.repeat(np.arange(problems), samples)
    values = (
        5
        + between * generator.normal(size=problems)[clusters]
        + within * generator.normal(size=clusters.size)
    )
    right = effect * (5 - values) + generator.normal(size=clusters.size) > 0
    return values, right, clusters, generator.integers(1, 50, clusters.size)


def half_width(estimate):
    assert estimate.high - estimate.value == pytest.approx(estimate.value - estimate.low)
    return estimate.high - estimate.value


def test_values_are_plain_means_and_the_area_is_that_of_mann_and_whitney():
    values, right, clusters, tokens = responses(np.random.default_rng(0), 40, 5)
    values = values.round(1)  # ties
    assert clustered_mean(values, clusters).value == pytest.approx(values.mean(), abs=1e-12)
    weighted = clustered_mean(values, clusters, weights=tokens)
    assert weighted.value == pytest.approx(np.average(values, weights=tokens), abs=1e-12)
    assert (weighted.responses, weighted.problems) == (200, 40)
    difference = clustered_difference(values, ~right, clusters)
    assert difference.value == pytest.approx(values[~right].mean() - values[right].mean(), abs=1e-12)
    reference = mannwhitneyu(-values[right], -values[~right]).statistic / (right.sum() * (~right).sum())
    assert clustered_auroc(-values, right, clusters).value == pytest.approx(reference, abs=1e-12)


def test_intervals_are_those_of_a_bootstrap_over_problems_and_not_over_responses():
    generator = np.random.default_rng(1)
    values, right, clusters, tokens = responses(generator, 150, 6)
    members = np.arange(values.size).reshape(150, 6)

    def standard_error(measure, rows):
        drawn = (rows[generator.integers(len(rows), size=len(rows))].ravel() for _ in range(300))
        return np.std([measure(chosen) for chosen in drawn])

    def area(chosen):
        mine = right[chosen]
        won = mannwhitneyu(-values[chosen][mine], -values[chosen][~mine]).statistic
        return won / (mine.sum() * (~mine).sum())

    def difference(chosen):
        return values[chosen][~right[chosen]].mean() - values[chosen][right[chosen]].mean()

    # Student's quantile with 149 degrees of freedom.
    quantile = 1.976
    for estimate, measure in (
        (clustered_mean(values, clusters), lambda chosen: values[chosen].mean()),
        (
            clustered_mean(values, clusters, weights=tokens),
            lambda chosen: np.average(values[chosen], weights=tokens[chosen]),
        ),
        (clustered_difference(values, ~right, clusters), difference),
        (clustered_auroc(-values, right, clusters), area),
    ):
        assert half_width(estimate) / quantile == pytest.approx(standard_error(measure, members), rel=0.15)
        # Negative control: as if the six responses to a problem were independent.
        naive = standard_error(measure, members.reshape(-1, 1))
        assert half_width(estimate) / quantile > 1.25 * naive


def test_intervals_cover_with_few_problems():
    generator = np.random.default_rng(2)
    # The areas' true value, from very many problems; the mean's is known.
    values, right, *_ = responses(generator, 40_000, 1)
    area = mannwhitneyu(-values[right], -values[~right]).statistic / (right.sum() * (~right).sum())
    covered = np.zeros(2)
    for _ in range(400):
        values, right, clusters, _ = responses(generator, 20, 4)
        found = (clustered_mean(values, clusters), 5.0), (clustered_auroc(-values, right, clusters), area)
        covered += [each.low <= truth <= each.high for each, truth in found]
    assert (covered / 400 > 0.90).all()
    assert covered[0] / 400 < 0.985


def test_without_variance_or_a_second_problem_there_is_no_interval():
    alike = clustered_mean([0.1, 0.1, 0.1], [0, 1, 2])
    assert (alike.value, alike.low, alike.high) == (pytest.approx(0.1), None, None)
    assert clustered_mean([0.1, 0.4], [0, 0]).low is None
    perfect = clustered_auroc([1.0, 2.0, 3.0, 4.0], [False, False, True, True], [0, 1, 2, 3])
    assert (perfect.value, perfect.low) == (1.0, None)
    with pytest.raises(ValueError, match="one kind"):
        clustered_auroc([1.0, 2.0], [True, True], [0, 1])
    with pytest.raises(ValueError, match="at least one"):
        clustered_mean([], [])
