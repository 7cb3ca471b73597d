"""Pass rates and their confidence intervals.

One sample per problem: the Wilson score interval (Wilson 1927; recommended by Brown, Cai and DasGupta 2001
for small counts and rates near 0 or 1). Several samples per problem are not independent, so the problems are
the unit: the mean over problems of the mean over samples, with a percentile bootstrap over problems (Efron
and Tibshirani 1993, ch. 13; clustering by question as in Miller 2024, arXiv 2411.00640).
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
    z = _normal_quantile(confidence)
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # For rates 0 and 1 the formula gives exactly 0 and 1, but floating point does not.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


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


def pass_rate(correct: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Pass rate of graded samples, with its interval.

    Args:
        correct: booleans `[problems, samples]`.
        confidence: coverage of the interval.
        seed: of the bootstrap, used with several samples per problem.

    Raises:
        ValueError: if `correct` is empty or not two-dimensional.
    """
    matrix = np.asarray(correct, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError("graded samples must be [problems, samples] and not empty")
    by_problem: NDArray[np.float64] = matrix.mean(axis=1)
    rate = float(by_problem.mean())
    problems, samples = matrix.shape
    # A bootstrap of equal values has width 0, as if 0 of 50 were certain. Then each problem counts as one trial.
    if samples == 1 or np.ptp(by_problem) == 0:
        low, high = wilson_interval(float(by_problem.sum()), problems, confidence)
        return Estimate(rate, low, high, confidence, "wilson")
    low, high = bootstrap_interval(by_problem, confidence, seed=seed)
    return Estimate(rate, low, high, confidence, "bootstrap over problems")


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Raises:
        ValueError: unless 1 <= k <= samples and 0 <= correct <= samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} with {correct} correct of {samples} samples is impossible")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def difference_interval(before: Estimate, after: Estimate) -> tuple[float, float, float]:
    """(after - before, low, high): the confidence interval of a difference, from two intervals.

    Newcombe 1998 (Statistics in Medicine 17:873), method 10, which needs only the two rates and intervals. It
    treats the two as independent. On the same problems they are positively correlated, so it is a little too
    wide.
    """
    change = after.rate - before.rate
    down = math.hypot(after.rate - after.low, before.high - before.rate)
    up = math.hypot(after.high - after.rate, before.rate - before.low)
    return change, max(-1.0, change - down), min(1.0, change + up)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} must be between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)
