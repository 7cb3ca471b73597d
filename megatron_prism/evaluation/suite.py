"""Scores one problem suite: samples completions from any engine and grades them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_prism.evaluation.statistics.intervals import pass_rate
from megatron_prism.evaluation.statistics.repeated import pass_at_k
from megatron_prism.generation.engine import Engine, SamplingParams
from megatron_prism.verification.grade import Grade, GradeItem, grade_all
from megatron_prism.verification.pool.grading_pool import GradingPool
from megatron_prism.verification.problems import Problem
from megatron_prism.verification.sandbox.isolation import STRONG


@dataclass(frozen=True)
class Sample:
    """One graded completion. `index` is its number among the problem's samples; `tokens` counts its sampled tokens."""

    problem: Problem
    index: int
    text: str
    grade: Grade
    tokens: int
    finish_reason: str

    def record(self) -> dict[str, Any]:
        """The sample as one line of samples.jsonl.zst."""
        return {
            "id": self.problem.id,
            "sample": self.index,
            "prompt": self.problem.prompt,
            "completion": self.text,
            "extracted": self.grade.extracted,
            "kind": self.problem.kind,
            "answer": self.problem.answer,
            "correct": self.grade.correct,
            "reason": self.grade.reason,
            **({"test_verdicts": self.grade.tests} if self.grade.tests else {}),
            **self._published(),
            "finish_reason": self.finish_reason,
            "tokens": self.tokens,
        }

    def _published(self) -> dict[str, Any]:
        if not self.problem.benchmark:
            return {}
        return {"benchmark": self.problem.benchmark, "published": self.grade.published}


@dataclass(frozen=True)
class SuiteResult:
    """All samples of a suite: `samples[p][s]` is sample `s` of problem `p`."""

    samples: list[list[Sample]]

    def flat(self) -> Iterable[Sample]:
        return (sample for row in self.samples for sample in row)

    def correct(self) -> list[list[bool]]:
        """Verdicts `[problems, samples]`."""
        return [[sample.grade.correct for sample in row] for row in self.samples]

    def by_problem(self) -> dict[str, tuple[int, int]]:
        """Problem -> (right samples, samples)."""
        return {row[0].problem.id: (sum(s.grade.correct for s in row), len(row)) for row in self.samples}

    def metrics(self, confidence: float) -> dict[str, Any]:
        """Pass rate with its interval, counts, truncation, length and reasons, JSON-ready.

        With n > 1 samples per problem also `pass_at_n`, the share of problems with a correct sample.
        """
        estimate = pass_rate(self.correct(), confidence)
        flat = list(self.flat())
        reasons: dict[str, int] = {}
        for sample in flat:
            reasons[sample.grade.reason] = reasons.get(sample.grade.reason, 0) + 1
        per_problem = len(self.samples[0])
        several = {}
        if per_problem > 1:
            best = [pass_at_k(per_problem, sum(row), per_problem) for row in self.correct()]
            several = {f"pass_at_{per_problem}": sum(best) / len(best)}
        return {
            "pass_rate": estimate.rate,
            "low": estimate.low,
            "high": estimate.high,
            "problems": len(self.samples),
            "samples": len(flat),
            "truncated": sum(sample.finish_reason == "length" for sample in flat) / len(flat),
            "confidence": confidence,
            "interval": estimate.interval,
            "mean_tokens": sum(sample.tokens for sample in flat) / len(flat),
            "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            **several,
            **self._published(),
        }

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


def evaluate(
    engine: Engine,
    problems: Sequence[Problem],
    params: SamplingParams,
    *,
    samples: int,
    pool: GradingPool,
    progress: Callable[[int], None] = lambda finished: None,
    sandbox: str = STRONG,
) -> SuiteResult:
    """Sample `samples` completions for each problem and grade them.

    Args:
        progress: called with the number of completions that the engine has just finished.
        sandbox: how programs among the completions are isolated, "strong" or "weak".

    Raises:
        RuntimeError: if the engine does not return `samples` completions for every prompt.
    """
    generated = engine.generate(
        [problem.prompt for problem in problems], params, samples=samples, progress=progress
    )
    if len(generated) != len(problems) or any(len(row) != samples for row in generated):
        raise RuntimeError(f"the engine did not return {samples} completions for each of its prompts")
    pairs = list(zip(problems, generated, strict=True))
    items = [
        GradeItem(problem.kind, completion.text, problem.answer, problem.tests, problem.benchmark)
        for problem, row in pairs
        for completion in row
    ]
    grades = iter(grade_all(items, pool, sandbox=sandbox))
    return SuiteResult(
        [
            [
                Sample(problem, index, c.text, next(grades), len(c.token_ids), c.finish_reason)
                for index, c in enumerate(row)
            ]
            for problem, row in pairs
        ]
    )
