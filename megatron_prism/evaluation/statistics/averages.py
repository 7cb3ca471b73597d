"""The two averages over the six reasoning benchmarks that are called AVG in PRISM.

The paper's (footnote 1, Table 11) is the mean of three domains, of which code has two benchmarks and mathematics
three, so that GPQA-Diamond counts as much as the three of mathematics together. The project page's pipeline table has
the mean of the six benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping

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
