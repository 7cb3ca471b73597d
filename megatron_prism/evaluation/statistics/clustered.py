"""Means over the responses to problems, with intervals, where the responses to one problem are not independent.

The estimators are linearised: every problem (cluster) has an influence, the first-order change of the estimate when the
problem is left out, and the variance is the sum of their squares (the sandwich estimator; for a ratio of sums: Cochran
1977, Sampling Techniques, section 6.3; for the area under the ROC curve: Obuchowski 1997, Biometrics 53:567). Student's
quantile and the factor G / (G - 1) are for G problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_prism.evaluation.statistics.intervals import student_quantile

Values = NDArray[np.float64]
# Of equal values, the computed variance may be as small as this, relative to their mean, instead of 0.
ROUNDING = 1e-12


@dataclass(frozen=True)
class ClusteredEstimate:
    """An estimate and its confidence interval.

    Attributes:
        low, high: None if there are fewer than two problems, or no variance to judge by.
        responses: on which the estimate is based.
        problems: to which these belong.
    """

    value: float
    low: float | None
    high: float | None
    responses: int
    problems: int


def clustered_mean(
    values: ArrayLike, clusters: ArrayLike, *, weights: ArrayLike | None = None, confidence: float = 0.95
) -> ClusteredEstimate:
    """The weighted mean of `values`, `[responses]`.

    Args:
        clusters: the number of the problem of each response, `[responses]`, integers from 0.
        weights: of the responses, `[responses]`, such as their numbers of tokens; None: all equal.

    Raises:
        ValueError: without responses.
    """
    data, groups = np.asarray(values, np.float64), np.asarray(clusters)
    shares = np.ones_like(data) if weights is None else np.asarray(weights, np.float64)
    if not len(data):
        raise ValueError("a mean needs at least one response")
    value, influence = _mean(data, groups, shares, groups.max() + 1)
    problems = len(np.unique(groups))
    low, high = _interval(value, influence, problems, confidence)
    return ClusteredEstimate(value, low, high, len(data), problems)


def clustered_difference(
    values: ArrayLike, chosen: ArrayLike, clusters: ArrayLike, *, confidence: float = 0.95
) -> ClusteredEstimate:
    """The mean of the chosen responses less the mean of the others; a problem may have both.

    Args:
        values: `[responses]`.
        chosen: booleans, `[responses]`.
        clusters: as for `clustered_mean`.

    Raises:
        ValueError: if no response is chosen, or all are.
    """
    data, mask, groups = np.asarray(values, np.float64), np.asarray(chosen, bool), np.asarray(clusters)
    problems = _fewest_problems(mask, groups)
    size = groups.max() + 1
    first, second = (_mean(data[each], groups[each], np.ones(each.sum()), size) for each in (mask, ~mask))
    value = first[0] - second[0]
    low, high = _interval(value, first[1] - second[1], problems, confidence)
    return ClusteredEstimate(value, low, high, len(data), problems)


def clustered_auroc(
    scores: ArrayLike, right: ArrayLike, clusters: ArrayLike, *, confidence: float = 0.95
) -> ClusteredEstimate:
    """The chance that a right response has a higher score than a wrong one; equal scores count half.

    Args:
        scores: `[responses]`.
        right: booleans, `[responses]`.
        clusters: as for `clustered_mean`.

    Raises:
        ValueError: if no response is right, or all are.
    """
    from scipy.stats import rankdata

    data, mask, groups = np.asarray(scores, np.float64), np.asarray(right, bool), np.asarray(clusters)
    problems = _fewest_problems(mask, groups)
    rights, wrongs = int(mask.sum()), int((~mask).sum())
    ranks = rankdata(data)
    # The share of the other kind that each response is above (right ones) or below (wrong ones).
    above = (ranks[mask] - rankdata(data[mask])) / wrongs
    below = 1 - (ranks[~mask] - rankdata(data[~mask])) / rights
    value = float(above.mean())
    size = groups.max() + 1
    influence = (
        np.bincount(groups[mask], above - value, size) / rights
        + np.bincount(groups[~mask], below - value, size) / wrongs
    )
    low, high = _interval(value, influence, problems, confidence)
    if low is not None and high is not None:
        low, high = max(0.0, low), min(1.0, high)
    return ClusteredEstimate(value, low, high, len(data), problems)


def _mean(data: Values, groups: NDArray[np.int64], weights: Values, size: int) -> tuple[float, Values]:
    """The weighted mean and the influence of each of `size` problems."""
    total = weights.sum()
    value = float((weights * data).sum() / total)
    return value, np.bincount(groups, weights * (data - value), size) / total


def _fewest_problems(mask: NDArray[np.bool_], groups: NDArray[np.int64]) -> int:
    """The smaller of the numbers of problems with a response of either kind."""
    if mask.all() or not mask.any():
        raise ValueError("two kinds of responses are compared, and all of them are of one kind")
    return min(len(np.unique(groups[each])) for each in (mask, ~mask))


def _interval(
    value: float, influence: Values, problems: int, confidence: float
) -> tuple[float | None, float | None]:
    if problems < 2:
        return None, None
    error = math.sqrt(problems / (problems - 1) * float(np.square(influence).sum()))
    if error <= ROUNDING * abs(value):
        return None, None
    half = student_quantile(confidence, problems - 1) * error
    return value - half, value + half
