"""Compare models that were evaluated on the same problems: paired tests, and what was kept of the base model.

A suite is compared by the problems that both models answered with as many samples. The p-values of all comparisons of a
call are corrected together (Holm). The suites of a group (domain, general, long) count alike in its mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.plan import DOMAIN, GENERAL, LONG
from megatron_prism.evaluation.scored_model import ScoredModel
from megatron_prism.evaluation.scores import Problems
from megatron_prism.evaluation.statistics.averages import (
    average_of_benchmarks,
    average_of_domains,
    weighted_mean,
)
from megatron_prism.evaluation.statistics.paired import PairedTest, holm, paired_test

KEPT, LOST, UNDECIDED = "kept", "lost", "undecided"
# A loss of up to two points counts as none, unless a user says otherwise before looking.
MARGIN = 0.02
# A group of more suites than this is shown by its mean only.
MOST_SUITES_SHOWN = 20


@dataclass(frozen=True)
class Comparison:
    """One suite of one model against the base.

    Attributes:
        group: what the suite measures.
        corrected: the p-value, corrected for all comparisons.
        verdict: kept, lost or undecided.
        only_in_one: problems that were left out, because only one of the two has them.
    """

    model: str
    suite: str
    group: str
    before: float
    after: float
    test: PairedTest
    corrected: float
    verdict: str
    only_in_one: int


@dataclass(frozen=True)
class GroupChange:
    """The mean change of the suites of one group, with its interval."""

    model: str
    group: str
    suites: int
    change: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Averages:
    """The paper's averages of one model, in 0..1; None without all six benchmarks."""

    model: str
    of_benchmarks: float | None
    of_domains: float | None


def retention(low: float, high: float, margin: float) -> str:
    """Whether a score was kept, for a loss of up to `margin` that was declared harmless before.

    Kept: the whole interval of the change is above -margin. Lost: it is not, and all of it is below 0. Otherwise
    undecided: the suites are too small to say.
    """
    if low >= -margin:
        return KEPT
    return LOST if high < 0 else UNDECIDED


def _verdict(test: PairedTest, corrected: float, *, margin: float, confidence: float) -> str:
    """Among many suites some are below 0 by chance: lost is only what the corrected test finds, too."""
    verdict = retention(test.low, test.high, margin)
    return UNDECIDED if verdict == LOST and corrected > 1 - confidence else verdict


def compare(
    models: Mapping[str, ScoredModel],
    margin: float = 0.0,
    confidence: float = 0.95,
    suites: Collection[str] | None = None,
) -> list[Comparison]:
    """Every model against the first, on every suite that both have.

    Args:
        models: by name; the first is the base.
        margin: see `retention`, in 0..1.
        suites: only these.

    Raises:
        ArtifactError: if a model has other numbers of samples, or shares no suite with the first.
    """
    (base, first), *others = models.items()
    found: list[tuple[str, str, float, float, PairedTest, int]] = []
    for name, second in others:
        shared = [
            suite
            for suite in first.problems
            if suite in second.problems and (suites is None or suite in suites)
        ]
        if not shared:
            raise ArtifactError(
                f"{name}: no suite of {base} ({', '.join(first.problems)}); it has {', '.join(second.problems)}"
            )
        for suite in shared:
            pair = first.problems[suite], second.problems[suite]
            found.append((name, suite, *_compared(*pair, f"{name}, suite '{suite}'", confidence)))
    corrected = holm([test.p_value for *_, test, _ in found])
    return [
        Comparison(
            name,
            suite,
            first.groups[suite],
            before,
            after,
            test,
            p_value,
            _verdict(test, p_value, margin=margin, confidence=confidence),
            left_out,
        )
        for (name, suite, before, after, test, left_out), p_value in zip(found, corrected, strict=True)
    ]


def _compared(
    first: Problems, second: Problems, who: str, confidence: float
) -> tuple[float, float, PairedTest, int]:
    both = [problem for problem in first if problem in second]
    if len(both) < 2:
        raise ArtifactError(
            f"{who}: it shares {len(both)} problems with the first model; two or more are needed"
        )
    counts = {problems[problem][1] for problems in (first, second) for problem in both}
    if len(counts) > 1:
        raise ArtifactError(f"{who}: samples per problem differ from the first model's ({sorted(counts)})")
    before, after = (
        np.array([right / samples for right, samples in map(problems.__getitem__, both)])
        for problems in (first, second)
    )
    left_out = len(first) + len(second) - 2 * len(both)
    return float(before.mean()), float(after.mean()), paired_test(before, after, confidence), left_out


def group_changes(comparisons: Sequence[Comparison], margin: float = 0.0) -> list[GroupChange]:
    """The mean change per model and group: domain gain, and general and long-context loss.

    Each suite has the same weight.
    """
    made = []
    for model in dict.fromkeys(each.model for each in comparisons):
        for group in (DOMAIN, GENERAL, LONG):
            tests = [each.test for each in comparisons if (each.model, each.group) == (model, group)]
            if not tests:
                continue
            change, low, high = weighted_mean(
                (1 / len(tests), test.change, test.low, test.high) for test in tests
            )
            made.append(
                GroupChange(model, group, len(tests), change, low, high, retention(low, high, margin))
            )
    return made


def averages(models: Mapping[str, ScoredModel]) -> Iterator[Averages]:
    """The averages of every model that has the six benchmarks."""
    for name, model in models.items():
        made = Averages(name, average_of_benchmarks(model.rates), average_of_domains(model.rates))
        if made.of_benchmarks is not None:
            yield made
