"""Two models on the same problems: the difference of their pass rates, its interval, and whether it could be chance.

The unit is the problem: of each, the difference of the two means over samples. Their mean is tested with Student's t
(paired; Miller 2024, arXiv 2411.00640, section 4). That models share problems makes the interval narrower than that of
two independent rates, often by half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from megatron_prism.evaluation.statistics.intervals import student_quantile

POWER = 0.8


@dataclass(frozen=True)
class PairedTest:
    """The difference after - before of two pass rates, in -1..1.

    Attributes:
        low, high: its confidence interval.
        p_value: the chance of a difference at least as large if there were none.
        detectable: the smallest true difference that this suite would have found with a chance of 80 %, at the level
            that belongs to the confidence.
    """

    change: float
    low: float
    high: float
    p_value: float
    detectable: float
    problems: int


def paired_test(before: ArrayLike, after: ArrayLike, confidence: float = 0.95) -> PairedTest:
    """Compare the means over samples of the same problems, `[problems]` each, in the same order.

    If all differences are equal, there is no variance to judge by. Then the interval allows for as many other problems
    as could have been missed: of n that are equal, a share of 1 - (1 - confidence)^(1/n) at most is not.

    Raises:
        ValueError: for different lengths, or fewer than two problems.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (before, after))
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(
            "a paired test needs one value per problem of each model, for the same two or more problems"
        )
    from scipy.special import stdtr

    differences = second - first
    problems, change = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(problems)
    if error == 0:
        missed = 1 - (1 - confidence) ** (1 / problems)
        low, high = max(-1.0, change - missed), min(1.0, change + missed)
        return PairedTest(change, low, high, 0.0 if low > 0 or high < 0 else 1.0, missed, problems)
    p_value = 2 * float(stdtr(problems - 1, -abs(change) / error))
    quantile = student_quantile(confidence, problems - 1)
    detectable = (quantile + student_quantile(2 * POWER - 1, problems - 1)) * error
    low, high = max(-1.0, change - quantile * error), min(1.0, change + quantile * error)
    return PairedTest(change, low, high, p_value, min(1.0, detectable), problems)


def detectable_alone(by_problem: ArrayLike, confidence: float = 0.95) -> float | None:
    """The smallest difference from another model that a suite would show with a chance of 80 %, known from one model.

    It assumes that the other model's rates `[problems]` vary as much and are not correlated with these. They mostly are
    correlated, and then a paired test sees a smaller difference. None if all rates are equal.
    """
    rates = np.asarray(by_problem, dtype=np.float64)
    error = math.sqrt(2 / len(rates)) * float(rates.std(ddof=1)) if len(rates) > 1 else 0.0
    if error == 0:
        return None
    freedom = len(rates) - 1
    return min(
        1.0, (student_quantile(confidence, freedom) + student_quantile(2 * POWER - 1, freedom)) * error
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, so corrected that the chance of any false one is bounded (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
