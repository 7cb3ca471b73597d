"""The bias of the best of several checkpoints, where the true scores are known.

benchmarks/evaluation_selection.py has the paper's sizes and 50 checkpoints.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.special import expit, logit

from megatron_prism.evaluation.statistics.averages import weighted_mean
from megatron_prism.evaluation.statistics.selection import cross_validated, select_best

CHECKPOINTS, OWN = 40, 0.7


def draw(
    generator: np.random.Generator, problems: int, samples: int, strengths: np.ndarray | None = None
) -> np.ndarray:
    """Rates of checkpoints, a third of whose problems are solved, each with chances of its own at each problem."""
    own = OWN * generator.normal(size=(CHECKPOINTS, problems))
    moved = np.zeros(CHECKPOINTS) if strengths is None else strengths
    chances = expit(levels(generator, problems) + own + moved[:, None])
    return generator.binomial(samples, chances) / samples


def levels(generator: np.random.Generator, problems: int) -> np.ndarray:
    return logit(np.clip(generator.beta(0.23, 0.47, problems), 1e-6, 1 - 1e-6))


@pytest.mark.parametrize(("problems", "samples"), [(30, 64), (198, 3)])
def test_the_best_of_equals_is_corrected_to_what_they_all_are(problems, samples):
    """All are equally good, so the mean over checkpoints has the chosen one's expectation, and the same suite."""
    generator = np.random.default_rng(1)
    printed, corrected, both = [], [], []
    for _ in range(80):
        rates = draw(generator, problems, samples)
        found = select_best({"suite": rates}, {"suite": 1.0})
        printed.append(found.printed - rates.mean())
        corrected.append(found.corrected - rates.mean())
        # Negative control: halves that choose and score are no halves.
        whole = np.concatenate([rates, rates], axis=1)
        both.append(cross_validated({"suite": whole}, {"suite": 1.0}, divisions=4) - rates.mean())
    assert np.mean(printed) > 0.02
    assert abs(np.mean(corrected)) < 0.1 * np.mean(printed) + 2 * np.std(corrected) / 80**0.5
    assert np.mean(both) > 0.3 * np.mean(printed)


def test_the_interval_covers_the_chosen_checkpoint_s_true_score_and_the_printed_one_does_not():
    generator = np.random.default_rng(2)
    truth = expit(levels(generator, 400_000) + OWN * generator.normal(size=400_000)).mean()
    covered, naive = [], []
    for _ in range(250):
        found = select_best({"suite": draw(generator, 198, 3)}, {"suite": 1.0})
        moved = found.printed - found.corrected
        covered.append(found.low <= truth <= found.high)
        naive.append(found.low + moved <= truth <= found.high + moved)
    assert 0.94 <= np.mean(covered) <= 0.99
    assert np.mean(naive) < 0.91


def test_every_half_chooses_once():
    """Of four problems there are three divisions into halves; many random ones have their mean."""
    rates = np.array([[1.0, 0.0, 0.5, 0.25], [0.0, 1.0, 0.75, 0.5], [0.5, 0.5, 0.0, 1.0]])
    scores = []
    for half in combinations(range(4), 2):
        other = [problem for problem in range(4) if problem not in half]
        scores.append(rates[rates[:, half].mean(axis=1).argmax()][other].mean())
    found = cross_validated({"suite": rates}, {"suite": 1.0}, divisions=30_000)
    assert found == pytest.approx(np.mean(scores), abs=0.005)
    assert len(set(scores)) > 1


def test_tenths_use_every_problem_once():
    """A checkpoint that is always the best is scored on all problems, whatever the parts."""
    rates = np.linspace(0, 0.5, 23)[None, :] + np.array([[0.0], [0.5]])
    for folds in (2, 10):
        found = cross_validated({"suite": rates}, {"suite": 1.0}, folds=folds, divisions=3)
        assert found == pytest.approx(rates[1].mean())


def test_the_correction_is_never_upwards_and_only_for_doubtful_choices():
    generator = np.random.default_rng(3)
    suites = {"large": 41, "small": 7}
    weights = {"large": 0.25, "small": 0.75}
    for _ in range(50):
        rates = {suite: generator.random((5, problems)) for suite, problems in suites.items()}
        found = select_best(rates, weights)
        assert found.corrected <= found.printed
        assert found.printed == pytest.approx(
            max(0.25 * rates["large"].mean(axis=1) + 0.75 * rates["small"].mean(axis=1))
        )
        assert 0 <= found.low <= found.corrected <= found.high <= 1
    sure = select_best(
        {"suite": draw(generator, 300, 8, strengths=np.eye(CHECKPOINTS)[4] * 3)}, {"suite": 1.0}
    )
    assert (sure.chosen, sure.corrected) == (4, pytest.approx(sure.printed))


def test_the_mean_of_suites_has_the_interval_of_a_sum_of_independent_parts():
    mean, low, high = weighted_mean([(0.5, 0.4, 0.1, 0.5), (0.5, 0.8, 0.4, 0.9)])
    assert (mean, low, high) == pytest.approx((0.6, 0.6 - 0.25, 0.6 + 0.5**0.5 / 10))
    assert weighted_mean([(1.0, 0.4, 0.1, 0.5)]) == pytest.approx((0.4, 0.1, 0.5))
