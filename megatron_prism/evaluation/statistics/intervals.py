"""Pass rates and their confidence intervals, for problems like those of a suite.

One sample per problem: the Wilson score interval (Wilson 1927; recommended by Brown, Cai and DasGupta 2001
for small counts and rates near 0 or 1). Several samples per problem are not independent, so the problems are the unit,
as in Miller 2024 (arXiv 2411.00640): the variance is that of the problems' means, and the interval is Wilson's with as
many trials as would have this variance, and Student's quantile (the effective sample size of Korn and Graubard 1998,
Survey Methodology 24:193, who use it with Clopper and Pearson's interval). It covers where a bootstrap over 30 problems
does not; docs/results/evaluation.md has the simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
# Resampled indices held in memory at once.
CHUNK_ELEMENTS = 4_000_000
# Below this many solved (or unsolved) problems, each counts as two trials at most.
FEW_PROBLEMS, MOST_TRIALS_OF_FEW = 5, 2


@dataclass(frozen=True)
class Estimate:
    """A rate in 0..1, its confidence interval, and the name of the method."""

    rate: float
    low: float
    high: float
    confidence: float
    interval: str


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion (Wilson 1927, doi 10.1080/01621459.1927.10502953).

    Args:
        successes: 0..trials; a fraction is possible when a trial is itself a mean.
        trials: number of independent trials, at least 1.
        confidence: coverage of the interval, e.g. 0.95.

    Raises:
        ValueError: for impossible counts or a confidence outside (0, 1).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials is impossible")
    low, high = _wilson(successes / trials, trials, _normal_quantile(confidence))
    # For rates 0 and 1 the formula gives exactly 0 and 1, but floating point does not.
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def _wilson(rate: float, trials: float, quantile: float) -> tuple[float, float]:
    scale = 1 + quantile * quantile / trials
    centre = (rate + quantile * quantile / (2 * trials)) / scale
    half = (
        quantile / scale * math.sqrt(rate * (1 - rate) / trials + quantile * quantile / (4 * trials * trials))
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` ([problems]), resampling problems with
    replacement.

    Raises:
        ValueError: for no values or a confidence outside (0, 1).
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data):
        raise ValueError("a bootstrap needs one value per problem and at least one problem")
    _normal_quantile(confidence)
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_ELEMENTS // len(data))
    means = np.concatenate(
        [
            data[generator.integers(len(data), size=(min(rows, resamples - start), len(data)))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def pass_rate(correct: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Pass rate of graded samples, with its interval.

    Args:
        correct: booleans `[problems, samples]`.
        confidence: coverage of the interval.

    Raises:
        ValueError: if `correct` is empty or not two-dimensional.
    """
    matrix = np.asarray(correct, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError("graded samples must be [problems, samples] and not empty")
    return mean_rate(matrix.mean(axis=1), confidence, several=matrix.shape[1] > 1)


def mean_rate(by_problem: ArrayLike, confidence: float = 0.95, *, several: bool = True) -> Estimate:
    """The mean of the rates `[problems]`, with its interval.

    Args:
        several: whether a rate may be any number in 0..1, such as a mean of samples; False: it is 0 or 1.
    """
    by_problem = np.asarray(by_problem, dtype=np.float64)
    rate, problems = float(by_problem.mean()), len(by_problem)
    # Equal means have variance 0, as if 0 of 50 were certain. Then each problem counts as one trial.
    if not several or problems == 1 or np.ptp(by_problem) == 0:
        low, high = wilson_interval(float(by_problem.sum()), problems, confidence)
        return Estimate(rate, low, high, confidence, "wilson")
    low, high = _wilson(rate, effective_trials(by_problem), student_quantile(confidence, problems - 1))
    return Estimate(rate, low, high, confidence, "wilson, effective sample size")


def effective_trials(by_problem: NDArray[np.float64]) -> float:
    """How many independent trials would have the variance of the mean of these problems' rates, which are not equal."""
    problems, rate = len(by_problem), float(by_problem.mean())
    trials = rate * (1 - rate) * problems / float(by_problem.var(ddof=1))
    # With so few solved (or unsolved) problems the variance is known badly, and mostly too small.
    if problems * min(rate, 1 - rate) < FEW_PROBLEMS:
        trials = min(trials, MOST_TRIALS_OF_FEW * problems)
    return trials


def student_quantile(confidence: float, freedom: int) -> float:
    """Student's quantile of a two-sided interval; a ValueError for a confidence outside (0, 1)."""
    from scipy.special import stdtrit

    _normal_quantile(confidence)
    return float(stdtrit(freedom, (1 + confidence) / 2))


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} must be between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)
