"""The scores of one problem suite, from the verdicts on its completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from megatron_prism.evaluation.generations import REFUSED
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.evaluation.statistics.intervals import pass_rate
from megatron_prism.evaluation.statistics.paired import detectable_alone
from megatron_prism.evaluation.statistics.repeated import majority_at_k, pass_at_k
from megatron_prism.verification.grade import Grade
from megatron_prism.verification.problems import Problem

# How many problems that cannot be graded are named in the scores.
NAMED = 20


@dataclass(frozen=True)
class GradedSample:
    """The verdict on one completion. `number` is its number among the problem's samples; `tokens` counts its tokens."""

    problem: Problem
    number: int
    grade: Grade
    tokens: int
    finish_reason: str
    empty: bool = False

    @property
    def ungradable(self) -> bool:
        """Whether the grader itself failed. A program that crashes or needs too much memory has a verdict."""
        reason = self.grade.reason
        return reason.startswith("error:") or (
            self.problem.kind != "code" and reason in ("crashed", "memory")
        )

    @property
    def refused(self) -> bool:
        """Whether there is no completion, because the engine could not make one for this prompt."""
        return self.finish_reason == REFUSED

    @property
    def timed_out(self) -> bool:
        """Whether the program or the grader exceeded its time limit."""
        return self.grade.reason == "timeout"


@dataclass(frozen=True)
class SuiteResult:
    """All samples of a suite: `samples[p][s]` is sample `s` of problem `p`."""

    plan: SuitePlan
    samples: list[list[GradedSample]]

    def flat(self) -> Iterator[GradedSample]:
        return (sample for row in self.samples for sample in row)

    def correct(self) -> list[list[bool]]:
        """Verdicts `[problems, samples]`."""
        return [[sample.grade.correct for sample in row] for row in self.samples]

    def by_problem(self) -> dict[str, tuple[float, int]]:
        """Problem -> (right samples, samples)."""
        return {row[0].problem.id: (sum(s.grade.correct for s in row), len(row)) for row in self.samples}

    def metrics(self, confidence: float) -> dict[str, Any]:
        """Pass rate with its interval, outcomes, length and reasons, JSON-ready.

        With several samples per problem also the means over problems of pass@k and majority@k.
        """
        estimate = pass_rate(self.correct(), confidence)
        flat = list(self.flat())
        reasons = Counter(sample.grade.reason for sample in flat)
        dropped = self.plan.dropped
        refused = list(dict.fromkeys(sample.problem.id for sample in flat if sample.refused))
        return {
            "pass_rate": estimate.rate,
            "low": estimate.low,
            "high": estimate.high,
            "problems": len(self.samples),
            "samples": len(flat),
            "group": self.plan.group,
            "outcomes": outcomes(flat),
            "dropped_problems": len(dropped),
            **({"dropped": dict(list(dropped.items())[:NAMED])} if dropped else {}),
            **({"refused": refused[:NAMED]} if refused else {}),
            "truncated": sum(sample.finish_reason == "length" for sample in flat) / len(flat),
            "confidence": confidence,
            "interval": estimate.interval,
            "mean_tokens": sum(sample.tokens for sample in flat) / len(flat),
            "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            "detectable_alone": detectable_alone([sum(row) / len(row) for row in self.correct()], confidence),
            **self._several(),
            **self._published(),
        }

    @cached_property
    def details(self) -> dict[str, dict[str, Any]]:
        """Problem -> its pass@k and majority@k, by k as text, and its number of different answers."""
        return {row[0].problem.id: problem_details(row) for row in self.samples}

    def _several(self) -> dict[str, Any]:
        """The means over problems of what `details` has, for suites of several samples per problem."""
        if len(self.samples[0]) == 1:
            return {}
        details = list(self.details.values())
        means: dict[str, Any] = {}
        for name in ("pass_at", "majority_at"):
            tables = [each[name] for each in details if name in each]
            if tables:
                means[name] = {k: sum(table[k] for table in tables) / len(tables) for k in tables[0]}
        return means

    def _published(self) -> dict[str, Any]:
        """The score by the benchmark's public grader, and how often it and ours disagree."""
        judged = [sample for sample in self.flat() if sample.problem.benchmark]
        both = [sample.grade for sample in judged if sample.grade.published is not None]
        if not judged:
            return {}
        return {
            "published": {
                "benchmarks": sorted({sample.problem.benchmark for sample in judged}),
                "pass_rate": sum(bool(grade.published) for grade in both) / max(1, len(both)),
                "disagreement": sum(grade.published != grade.correct for grade in both) / max(1, len(both)),
                "samples": len(both),
                "failed": len(judged) - len(both),
            }
        }


def problem_details(row: Sequence[GradedSample]) -> dict[str, Any]:
    """pass@k and majority@k of one problem for k = 1, 2, 4, ... and all its samples.

    Answers of equal value may be spelled differently. All right ones are one answer; wrong ones are told apart by their
    spelling without blanks, which splits their votes. Programs have no majority.
    """
    correct = [sample.grade.correct for sample in row]
    sizes = _sizes(len(row))
    found: dict[str, Any] = {
        "pass_at": {str(k): pass_at_k(len(row), sum(correct), k) for k in sizes},
    }
    if row[0].problem.kind != "code":
        answers = [_vote(sample.grade) for sample in row]
        found["majority_at"] = {str(k): majority_at_k(answers, correct, k) for k in sizes}
        found["different_answers"] = len(set(answers) - {None})
    return found


def _vote(grade: Grade) -> str | None:
    if grade.correct:
        return "right"
    return None if grade.extracted is None else "wrong: " + "".join(grade.extracted.split())


def _sizes(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples."""
    return [*(2**power for power in range(samples.bit_length()) if 2**power < samples), samples]


def outcomes(samples: Sequence[GradedSample]) -> dict[str, int]:
    """What became of the completions. The first four add up to all; the others count some of these again.

    graded: has a verdict. ungradable: the grader failed. timed_out: the program or the grader exceeded its time limit.
    refused: there is no completion, because of the prompt (too long, or the server refused it).
    truncated: reached the maximum number of tokens. empty: has no text but blanks.
    """
    ungradable = sum(sample.ungradable for sample in samples)
    timed_out = sum(sample.timed_out for sample in samples)
    refused = sum(sample.refused for sample in samples)
    return {
        "graded": len(samples) - ungradable - timed_out - refused,
        "ungradable": ungradable,
        "timed_out": timed_out,
        "refused": refused,
        "truncated": sum(sample.finish_reason == "length" for sample in samples),
        "empty": sum(sample.empty and not sample.refused for sample in samples),
    }
