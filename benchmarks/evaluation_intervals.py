"""How often intervals of pass rates cover the truth, and how often the paired test is wrong, on simulated suites.

    python benchmarks/evaluation_intervals.py [DRAWS]

Suites have the paper's sizes. A problem's chance of being solved comes from a beta distribution with the suite's true
mean; a + b says how much problems differ: at 0.3 nearly all are solved always or never, at 3 they are much alike.
Forty seconds on one core with 2,000 draws.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from megatron_prism.evaluation.statistics.averages import weighted_mean
from megatron_prism.evaluation.statistics.intervals import bootstrap_interval, pass_rate
from megatron_prism.evaluation.statistics.paired import paired_test

SIZES = {
    "30 x 64 (AIME)": (30, 64),
    "500 x 64 (MATH500)": (500, 64),
    "279 x 3 (LiveCodeBench)": (279, 3),
    "453 x 3 (Codeforces)": (453, 3),
    "198 x 3 (GPQA-Diamond)": (198, 3),
}
MEANS = {
    "1 to 5 %": (0.01, 0.02, 0.05),
    "10 to 20 %": (0.1, 0.2),
    "30 to 65 %": (0.3, 0.5, 0.65),
    "80 to 95 %": (0.8, 0.95),
}
# Group -> problems, samples and mean of its suites, for the interval of a group's mean change.
GROUPS = {
    "the six reasoning benchmarks": [
        *((30, 64, 0.3), (30, 64, 0.25), (500, 64, 0.8)),
        *((279, 3, 0.12), (453, 3, 0.1), (198, 3, 0.35)),
    ],
    "two of 30 x 64": [(30, 64, 0.3), (30, 64, 0.05)],
    "40 tasks of 100 x 1": [(100, 1, 0.5)] * 40,
    "6 lengths of 50 x 1": [(50, 1, 0.95 - 0.1 * length) for length in range(6)],
}
SPREADS, ALIKE = (0.3, 0.7, 1.5), 3.0


def rates(
    generator: np.random.Generator, size: tuple[int, int], mean: float, spread: float, *, draws: int
) -> NDArray[np.float64]:
    """Observed rates `[draws, problems]`."""
    problems, samples = size
    chances = generator.beta(mean * spread, (1 - mean) * spread, size=(draws, problems))
    return generator.binomial(samples, chances) / samples


def covered(observed: NDArray[np.float64], mean: float) -> float:
    """Percent of draws whose interval holds the true mean."""
    # Two equal columns have the rates and the variance of a problem's samples.
    made = [pass_rate(np.repeat(row[:, None], 2, axis=1)) for row in observed]
    return 100 * float(np.mean([each.low <= mean <= each.high for each in made]))


def coverage_table(generator: np.random.Generator, draws: int) -> Iterator[str]:
    yield f"| problems x samples | {' | '.join(f'mean {name}' for name in MEANS)} | a + b = {ALIKE:g} |"
    yield f"|---|{'---:|' * (len(MEANS) + 1)}"
    for name, size in SIZES.items():
        cells = []
        for means in MEANS.values():
            found = [
                covered(rates(generator, size, mean, spread, draws=draws), mean)
                for mean in means
                for spread in SPREADS
            ]
            cells.append(f"{min(found):.1f} to {max(found):.1f}")
        alike = [
            covered(rates(generator, size, mean, ALIKE, draws=draws), mean)
            for means in MEANS.values()
            for mean in means
        ]
        yield f"| {name} | {' | '.join(cells)} | {min(alike):.1f} to {max(alike):.1f} |"


def bootstrap_lines(generator: np.random.Generator, draws: int) -> Iterator[str]:
    for mean in (0.02, 0.05, 0.1, 0.3):
        made = [
            bootstrap_interval(row, resamples=1000)
            for row in rates(generator, (30, 64), mean, 0.7, draws=draws)
        ]
        share = 100 * np.mean([low <= mean <= high for low, high in made])
        yield f"bootstrap over problems, 30 x 64, mean {mean:.0%}: covers {share:.1f} %"


def false_alarms(generator: np.random.Generator, draws: int) -> Iterator[str]:
    """Both models have the same chances, or half of the problems have chances of their own for each."""
    means = (0.02, 0.1, 0.3, 0.8)
    yield f"| false alarms of the paired test | {' | '.join(f'mean {mean:.0%}' for mean in means)} |"
    yield f"|---|{'---:|' * len(means)}"
    for name, (problems, samples) in SIZES.items():
        cells = []
        for mean in means:
            chances = generator.beta(0.7 * mean, 0.7 * (1 - mean), size=(3, draws, problems))
            own = generator.random((draws, problems)) < 0.5
            pairs = [
                (chances[0], chances[0]),
                (np.where(own, chances[1], chances[0]), np.where(own, chances[2], chances[0])),
            ]
            shares = []
            for before, after in pairs:
                observed = (generator.binomial(samples, each) / samples for each in (before, after))
                p_values = [paired_test(*pair).p_value for pair in zip(*observed, strict=True)]
                shares.append(100 * np.mean(np.array(p_values) < 0.05))
            cells.append(f"{shares[0]:.1f}, {shares[1]:.1f}")
        yield f"| {name} | {' | '.join(cells)} |"


def group_lines(generator: np.random.Generator, draws: int) -> Iterator[str]:
    """Half of the problems have chances of their own for each model; the other model loses two points everywhere."""
    yield "| mean change of a group | covers | too high | too low | half width, points |"
    yield "|---|---:|---:|---:|---:|"
    for name, suites in GROUPS.items():
        ends = []
        for _ in range(draws):
            parts = []
            for problems, samples, mean in suites:
                # A share of the problems is lost for certain, so that the true loss is two points.
                chances = generator.beta(0.7 * mean, 0.7 * (1 - mean), size=(3, problems))
                own = generator.random(problems) < 0.5
                kept = generator.random(problems) >= 0.02 / mean
                before, after = (np.where(own, each, chances[0]) for each in chances[1:])
                test = paired_test(
                    *(generator.binomial(samples, each) / samples for each in (before, after * kept))
                )
                parts.append((1 / len(suites), test.change, test.low, test.high))
            ends.append(weighted_mean(parts)[1:])
        low, high = np.array(ends).T
        above, below = 100 * np.mean(low > -0.02), 100 * np.mean(high < -0.02)
        half = 50 * np.mean(high - low)
        yield f"| {name} | {100 - above - below:.1f} | {above:.1f} | {below:.1f} | {half:.1f} |"


def main(draws: int) -> None:
    generator = np.random.default_rng(1)
    for line in (
        *coverage_table(generator, draws),
        *bootstrap_lines(generator, draws // 2),
        *false_alarms(generator, draws),
        *group_lines(np.random.default_rng(1), draws),
    ):
        print(line)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
