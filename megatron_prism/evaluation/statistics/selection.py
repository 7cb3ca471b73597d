"""How much too good a score is because the best of several checkpoints was chosen by it.

The largest of many noisy scores is too large. How much follows from choosing by one half of the problems and scoring
the choice on the other half (cross-validation of a selection: Varma and Simon 2006, BMC Bioinformatics 7:91).
Checkpoints are compared on the same problems, so difficulty that they share causes no bias. docs/results/evaluation.md
compares this on simulated checkpoints, whose true scores are known, with tenths in place of halves, which make the
correction noisier, and with a bootstrap, which leaves a fifth to a third of the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_prism.evaluation.statistics.averages import weighted_mean
from megatron_prism.evaluation.statistics.intervals import mean_rate

# Parts of the problems, and random divisions into parts.
FOLDS, DIVISIONS = 2, 100
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

    The interval is that of the chosen checkpoint's mean, moved by as much.

    Args:
        rates: suite -> pass rate `[checkpoints, problems]` of every problem.
        weights: of the suites; they add up to 1.
        seed: of the random divisions of the problems.
    """
    means = sum(weights[suite] * each.mean(axis=1) for suite, each in rates.items())
    chosen = int(np.argmax(means))
    printed = float(np.asarray(means)[chosen])
    # Checkpoints chosen by a part of the problems are not better; halves of unequal size can pretend it by a hair.
    bias = max(0.0, printed - cross_validated(rates, weights, seed=seed))
    parts = [(weights[s], mean_rate(each[chosen], confidence)) for s, each in rates.items()]
    _, low, high = weighted_mean((weight, each.rate, each.low, each.high) for weight, each in parts)
    corrected = printed - bias
    return Selection(chosen, printed, corrected, max(0.0, low - bias), min(1.0, high - bias))


def cross_validated(
    rates: Mapping[str, Rates],
    weights: Mapping[str, float],
    *,
    folds: int = FOLDS,
    divisions: int = DIVISIONS,
    seed: int = 0,
) -> float:
    """The weighted mean of checkpoints that were chosen without the problems on which they are scored.

    Every problem is scored once per division; the mean over random divisions is returned.
    """
    generator = np.random.default_rng(seed)
    others, held_out = 0.0, 0.0
    for suite, each in rates.items():
        problems = each.shape[1]
        inside = _membership(generator, problems, folds, divisions)
        sums = each @ inside
        rest = each.sum(axis=1, keepdims=True) - sums
        others = others + weights[suite] * rest / (problems - inside.sum(axis=0))
        held_out = held_out + weights[suite] * sums / problems
    scores = np.asarray(held_out)
    winners = np.asarray(others).argmax(axis=0)
    return float(scores[winners, np.arange(scores.shape[1])].sum()) / divisions


def _membership(generator: np.random.Generator, problems: int, folds: int, divisions: int) -> Rates:
    """1 where a problem is in a part: `[problems, divisions * folds]`. Parts differ in size by one problem at most."""
    part = generator.permuted(np.tile(np.arange(problems) % folds, (divisions, 1)), axis=1)
    inside = np.zeros((problems, divisions * folds))
    columns = part + folds * np.arange(divisions)[:, None]
    np.put_along_axis(inside, columns.T, 1.0, axis=1)
    return inside
