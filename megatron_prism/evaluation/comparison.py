"""Compare models that were evaluated on the same problems: paired tests, and what was kept of the base model.

A suite is compared by the problems that both models answered with as many samples. The p-values of all comparisons of a
call are corrected together (Holm).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.scores import Problems, read_problems, read_scores
from megatron_prism.evaluation.statistics.averages import average_of_benchmarks, average_of_domains
from megatron_prism.evaluation.statistics.paired import PairedTest, holm, paired_test

KEPT, LOST, UNDECIDED = "kept", "lost", "undecided"


@dataclass(frozen=True)
class Comparison:
    """One suite of one model against the base.

    Attributes:
        corrected: the p-value, corrected for all comparisons.
        verdict: kept, lost or undecided.
        only_in_one: problems that were left out, because only one of the two has them.
    """

    model: str
    suite: str
    before: float
    after: float
    test: PairedTest
    corrected: float
    verdict: str
    only_in_one: int


@dataclass(frozen=True)
class Averages:
    """The paper's averages of one model, in 0..1; None without all six benchmarks."""

    model: str
    of_benchmarks: float | None
    of_domains: float | None


def retention(test: PairedTest, margin: float) -> str:
    """Whether a score was kept, for a loss of up to `margin` that was declared harmless before.

    Kept: the whole interval is above -margin. Lost: it is not, and all of it is below 0. Otherwise undecided: the
    suite is too small to say.
    """
    if test.low >= -margin:
        return KEPT
    return LOST if test.high < 0 else UNDECIDED


def compare(
    folders: Mapping[str, Path],
    margin: float = 0.0,
    confidence: float = 0.95,
    suites: Collection[str] | None = None,
) -> list[Comparison]:
    """Every model against the first, on every suite that both have.

    Args:
        folders: model -> evaluation artifact.
        margin: see `retention`, in 0..1.
        suites: only these.

    Raises:
        ArtifactError: if an artifact cannot be read, has other numbers of samples, or shares no suite with the first.
    """
    (base, first), *others = ((name, read_problems(folder)) for name, folder in folders.items())
    found: list[tuple[str, str, float, float, PairedTest, int]] = []
    for model, second in others:
        shared = [suite for suite in first if suite in second and (suites is None or suite in suites)]
        if not shared:
            raise ArtifactError(
                f"{folders[model]}: no suite of {folders[base]} ({', '.join(first)}); it has {', '.join(second)}"
            )
        for suite in shared:
            found.append((model, suite, *_compared(first[suite], second[suite], folders[model], confidence)))
    corrected = holm([test.p_value for *_, test, _ in found])
    return [
        Comparison(model, suite, before, after, test, p_value, retention(test, margin), left_out)
        for (model, suite, before, after, test, left_out), p_value in zip(found, corrected, strict=True)
    ]


def _compared(
    first: Problems, second: Problems, folder: Path, confidence: float
) -> tuple[float, float, PairedTest, int]:
    both = [problem for problem in first if problem in second]
    if len(both) < 2:
        raise ArtifactError(
            f"{folder}: it shares {len(both)} problems with the first model; two or more are needed"
        )
    counts = {problems[problem][1] for problems in (first, second) for problem in both}
    if len(counts) > 1:
        raise ArtifactError(f"{folder}: samples per problem differ from the first model's ({sorted(counts)})")
    before, after = (
        np.array([right / samples for right, samples in map(problems.__getitem__, both)])
        for problems in (first, second)
    )
    left_out = len(first) + len(second) - 2 * len(both)
    return float(before.mean()), float(after.mean()), paired_test(before, after, confidence), left_out


def averages(folders: Mapping[str, Path]) -> Iterator[Averages]:
    """The averages of every model that has the six benchmarks."""
    for model, folder in folders.items():
        rates = {suite: float(values["pass_rate"]) for suite, values in read_scores(folder)["suites"].items()}
        made = Averages(model, average_of_benchmarks(rates), average_of_domains(rates))
        if made.of_benchmarks is not None:
            yield made
