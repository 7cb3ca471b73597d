"""How much too high the score of the best of several checkpoints is, and what a correction leaves, on simulated runs.

    python benchmarks/evaluation_selection.py [DRAWS]

Suites have the paper's sizes. The true chance that a checkpoint solves a problem is the problem's (from a beta
distribution, a + b = 0.7), moved on the logistic scale by the checkpoint's strength and by a normal amount for each
pair of checkpoint and problem; so the true score of every checkpoint is known. Two minutes of one core with 400 draws.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import beta

from megatron_prism.evaluation.statistics.averages import weighted_mean, weights_of_averages
from megatron_prism.evaluation.statistics.intervals import mean_rate
from megatron_prism.evaluation.statistics.selection import cross_validated, select_best

SPREAD = 0.7
# Suite -> problems, samples, and the mean rate of a checkpoint of strength 0.
SUITES = {
    "aime24": (30, 64, 0.3),
    "aime25": (30, 64, 0.25),
    "math500": (500, 64, 0.8),
    "livecodebench": (279, 3, 0.12),
    "codeforces": (453, 3, 0.1),
    "gpqa_diamond": (198, 3, 0.35),
}
AVERAGE = "mean of three domains"
WEIGHTS = {AVERAGE: weights_of_averages()["of three domains"]} | {suite: {suite: 1.0} for suite in SUITES}
SHOWN = [AVERAGE, "aime24", "math500", "livecodebench", "codeforces", "gpqa_diamond"]
METHODS = ("as read off", "bootstrap", "tenths", "halves (ours)")


@dataclass(frozen=True)
class Scenario:
    """What checkpoints are like: how far their strengths differ, and their chances at single problems."""

    name: str
    walk: float = 0.0
    rise: float = 0.0
    own: float = 0.0

    def strengths(self, generator: np.random.Generator, checkpoints: int) -> NDArray[np.float64]:
        steps = np.arange(checkpoints)
        return np.cumsum(generator.normal(0, self.walk, checkpoints)) - self.rise * np.exp(-steps / 10)


SCENARIOS = (
    Scenario("all alike"),
    Scenario("equally good, at other problems", own=0.7),
    Scenario("a random walk", walk=0.05, own=0.3),
    Scenario("rising, then flat", rise=1.0, own=0.3),
)


def true_rates(strengths: NDArray[np.float64], own: float, mean: float) -> NDArray[np.float64]:
    """The mean rates of checkpoints over all problems that there could be, by quadrature."""
    levels = beta.ppf((np.arange(1500) + 0.5) / 1500, mean * SPREAD, (1 - mean) * SPREAD)
    nodes, shares = np.polynomial.hermite_e.hermegauss(15)
    problems = logit(np.clip(levels, 1e-9, 1 - 1e-9))[:, None] + own * nodes
    return np.array([(expit(problems + each) @ shares).mean() for each in strengths]) / shares.sum()


def observed(
    generator: np.random.Generator, strengths: NDArray[np.float64], own: float, suite: str
) -> NDArray[np.float64]:
    """Rates `[checkpoints, problems]` of one draw of problems and samples."""
    problems, samples, mean = SUITES[suite]
    levels = np.clip(generator.beta(mean * SPREAD, (1 - mean) * SPREAD, problems), 1e-9, 1 - 1e-9)
    moved = own * generator.normal(size=(len(strengths), problems))
    return generator.binomial(samples, expit(logit(levels) + strengths[:, None] + moved)) / samples


def bootstrap_bias(
    generator: np.random.Generator, rates: Mapping[str, NDArray[np.float64]], weights: Mapping[str, float]
) -> float:
    """The optimism of the choice when problems are drawn again, the same ones for all checkpoints."""
    again, means = 0.0, 0.0
    for suite, each in rates.items():
        problems = each.shape[1]
        counts = generator.multinomial(problems, np.full(problems, 1 / problems), size=200).T
        again = again + weights[suite] * (each @ counts) / problems
        means = means + weights[suite] * each.mean(axis=1)
    scores = np.asarray(again)
    best = scores.argmax(axis=0)
    return float((scores[best, np.arange(200)] - np.asarray(means)[best]).mean())


@dataclass(frozen=True)
class Found:
    """One draw: the error of each method in points, and which intervals hold the truth."""

    errors: tuple[float, ...]
    covered: tuple[bool, bool]
    biases: tuple[float, ...]


def judged(
    generator: np.random.Generator,
    rates: Mapping[str, NDArray[np.float64]],
    weights: Mapping[str, float],
    truth: NDArray[np.float64],
) -> Found:
    """Choose by the weighted mean, and compare what is said of the chosen with its true score.

    From each error that of the mean over all checkpoints is taken off: it has nothing to do with the choice and an
    expectation of 0, so that fewer draws do.
    """
    best = select_best(rates, weights)
    shared = sum(weights[s] * each.mean() for s, each in rates.items()) - truth.mean()
    boot = best.printed - bootstrap_bias(generator, rates, weights)
    tenths = cross_validated(rates, weights, folds=10, divisions=20)
    said = (best.printed, boot, tenths, best.corrected)
    mine = truth[best.chosen]
    plain = {suite: mean_rate(each[best.chosen]) for suite, each in rates.items()}
    _, low, high = weighted_mean((weights[s], each.rate, each.low, each.high) for s, each in plain.items())
    return Found(
        tuple(100 * float(each - mine - shared) for each in said),
        (low <= mine <= high, best.low <= mine <= best.high),
        tuple(100 * float(best.printed - each) for each in said),
    )


def simulated(
    scenario: Scenario, checkpoints: int, scores: Sequence[str], *, draws: int, seed: int = 1
) -> dict[str, list[Found]]:
    """Score -> what was found in each draw."""
    generator = np.random.default_rng(seed)
    grid = np.linspace(-3, 3, 121)
    curves = {
        suite: true_rates(grid, scenario.own, mean)
        for suite, (*_, mean) in SUITES.items()
        if any(suite in WEIGHTS[score] for score in scores)
    }
    found = defaultdict(list)
    for _ in range(draws):
        strengths = scenario.strengths(generator, checkpoints)
        rates = {suite: observed(generator, strengths, scenario.own, suite) for suite in curves}
        truths = {suite: np.interp(strengths, grid, curve) for suite, curve in curves.items()}
        for score in scores:
            weights = WEIGHTS[score]
            truth = np.sum([share * truths[suite] for suite, share in weights.items()], axis=0)
            chosen = {suite: rates[suite] for suite in weights}
            found[score].append(judged(generator, chosen, weights, truth))
    return dict(found)


def tables(draws: int) -> Iterator[str]:
    every = {scenario.name: simulated(scenario, 50, SHOWN, draws=draws) for scenario in SCENARIOS}
    yield f"| 50 checkpoints | too high by | {' | '.join(SHOWN)} |"
    yield f"|---|---|{'---:|' * len(SHOWN)}"
    for name, found in every.items():
        for index, method in enumerate(METHODS):
            cells = [f"{np.mean([each.errors[index] for each in found[score]]):+.2f}" for score in SHOWN]
            yield f"| {name} | {method} | {' | '.join(cells)} |"
    yield ""
    yield f"| standard deviation of the correction | {' | '.join(SHOWN)} |"
    yield f"|---|{'---:|' * len(SHOWN)}"
    for index, method in list(enumerate(METHODS))[1:]:
        cells = [f"{np.std([f.biases[index] for f in every['all alike'][score]]):.2f}" for score in SHOWN]
        yield f"| {method}, all alike | {' | '.join(cells)} |"
    yield ""
    yield f"| covers the chosen one's true score | {' | '.join(SHOWN)} |"
    yield f"|---|{'---:|' * len(SHOWN)}"
    for side, method in enumerate(("interval as read off", "corrected interval")):
        for name, found in every.items():
            cells = [f"{100 * np.mean([each.covered[side] for each in found[score]]):.1f}" for score in SHOWN]
            yield f"| {method}, {name} | {' | '.join(cells)} |"
    yield ""
    yield f"| {AVERAGE}, {SCENARIOS[1].name} | {' | '.join(METHODS)} | covered, as read off | covered, corrected |"
    yield f"|---|{'---:|' * (len(METHODS) + 2)}"
    for checkpoints in (2, 5, 20, 50):
        (found_here,) = simulated(SCENARIOS[1], checkpoints, [AVERAGE], draws=draws).values()
        cells = [f"{mean:+.2f}" for mean in np.mean([each.errors for each in found_here], axis=0)]
        cells += [f"{100 * share:.1f}" for share in np.mean([each.covered for each in found_here], axis=0)]
        yield f"| {checkpoints} checkpoints | {' | '.join(cells)} |"


def main(draws: int) -> None:
    for line in tables(draws):
        print(line)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
