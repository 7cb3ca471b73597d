"""How much too good a score is because the best of several checkpoints was chosen by it.

The largest of many noisy scores is too large. How much follows from choosing again without a part of the problems, and
scoring the choice on that part (cross-validation of a selection: Varma and Simon 2006, BMC Bioinformatics 7:91).
Checkpoints are compared on the same problems, so difficulty that they share causes no bias. docs/results/evaluation.md
compares this with a bootstrap, on simulated checkpoints whose true scores are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_prism.evaluation.statistics.intervals import mean_rate

# Parts of the problems, and random divisions into parts.
FOLDS, DIVISIONS = 10, 20
# [checkpoints, problems]
Rates = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """The best checkpoint by the weighted mean of some suites, in 0..1.

    Attributes:
        chosen: its index.
        printed: the mean with which it was chosen.
        corrected: the mean without what the choice added, with its interval.
    """

    chosen: int
    printed: float
    corrected: float
    low: float
    high: float


def select_best(
    rates: Mapping[str, Rates], weights: Mapping[str, float], confidence: float = 0.95, seed: int = 0
) -> Selection:
    """Choose the checkpoint with the largest weighted mean, and correct its score for the choice.

    The interval is that of the chosen checkpoint's mean, around the corrected one, and wider: the correction is about
    as uncertain as it is large.

    Args:
        rates: suite -> pass rate `[checkpoints, problems]` of every problem.
        weights: of the suites; they add up to 1.
        seed: of the random divisions of the problems.
    """
    means = sum(weights[suite] * each.mean(axis=1) for suite, each in rates.items())
    chosen = int(np.argmax(means))
    printed = float(np.asarray(means)[chosen])
    bias = printed - cross_validated(rates, weights, seed)
    estimates = {suite: mean_rate(each[chosen], confidence) for suite, each in rates.items()}
    below = math.hypot(bias, *(weights[s] * (each.rate - each.low) for s, each in estimates.items()))
    above = math.hypot(bias, *(weights[s] * (each.high - each.rate) for s, each in estimates.items()))
    corrected = min(1.0, max(0.0, printed - bias))
    return Selection(chosen, printed, corrected, max(0.0, corrected - below), min(1.0, corrected + above))


def cross_validated(rates: Mapping[str, Rates], weights: Mapping[str, float], seed: int = 0) -> float:
    """The weighted mean of checkpoints that were chosen without the problems on which they are scored.

    Every problem is scored once per division; the mean over `DIVISIONS` random divisions is returned.
    """
    generator = np.random.default_rng(seed)
    total = 0.0
    for _ in range(DIVISIONS):
        folds = {suite: _folds(generator, each.shape[1]) for suite, each in rates.items()}
        for fold in range(FOLDS):
            rest, part = 0.0, 0.0
            for suite, each in rates.items():
                inside = folds[suite] == fold
                outside = max(1, int((~inside).sum()))
                rest = rest + weights[suite] * each[:, ~inside].sum(axis=1) / outside
                part = part + weights[suite] * each[:, inside].sum(axis=1) / each.shape[1]
            total += float(np.asarray(part)[int(np.argmax(rest))])
    return total / DIVISIONS


def _folds(generator: np.random.Generator, problems: int) -> NDArray[np.int64]:
    """The part of each problem; parts differ in size by one at most."""
    return generator.permutation(np.arange(problems) % FOLDS)
