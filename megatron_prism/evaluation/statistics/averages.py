"""Means over suites: the two that are called AVG in PRISM, and the interval of a mean.

The paper's (footnote 1, Table 11) is the mean of three domains, of which code has two benchmarks and mathematics
three, so that GPQA-Diamond counts as much as the three of mathematics together. The project page's pipeline table has
the mean of the six benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

DOMAINS = {
    "code": ("livecodebench", "codeforces"),
    "math": ("aime24", "aime25", "math500"),
    "science": ("gpqa_diamond",),
}


def weights_of_averages() -> dict[str, dict[str, float]]:
    """Each average -> benchmark -> its weight."""
    six = [name for benchmarks in DOMAINS.values() for name in benchmarks]
    return {
        "of six benchmarks": dict.fromkeys(six, 1 / len(six)),
        "of three domains": {
            name: 1 / len(DOMAINS) / len(benchmarks) for benchmarks in DOMAINS.values() for name in benchmarks
        },
    }


def weighted_mean(parts: Iterable[tuple[float, float, float, float]]) -> tuple[float, float, float]:
    """The weighted mean of values of suites, which have different problems, and its interval.

    The distances of the mean to the ends of its interval are the roots of the weighted sums of squares of those of the
    suites (Zou and Donner 2008, Statistics in Medicine 27:1693).

    Args:
        parts: (weight, value, low, high) of each suite.

    Returns:
        The mean, and the low and high ends, which are not confined to 0..1.
    """
    known = list(parts)
    mean = math.fsum(weight * value for weight, value, _, _ in known)
    below = math.hypot(*(weight * (value - low) for weight, value, low, _ in known))
    above = math.hypot(*(weight * (high - value) for weight, value, _, high in known))
    return mean, mean - below, mean + above


def average_of_benchmarks(scores: Mapping[str, float]) -> float | None:
    """The mean of the six; None if one is missing. Others are ignored."""
    names = [name for benchmarks in DOMAINS.values() for name in benchmarks]
    return _mean([scores.get(name) for name in names])


def average_of_domains(scores: Mapping[str, float]) -> float | None:
    """The mean of the means of code, mathematics and science; None if one of the six is missing."""
    return _mean([_mean([scores.get(name) for name in benchmarks]) for benchmarks in DOMAINS.values()])


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
