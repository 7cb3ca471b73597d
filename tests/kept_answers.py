"""Evaluation artifacts with given answers, graded for real, without a model and without worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from megatron_prism.evaluation.generations import FOLDER, PartWriter, remove_parts
from megatron_prism.evaluation.grading import grade_suite
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.evaluation.suite import SuiteResult
from megatron_prism.generation.engine import Completion, SamplingParams
from megatron_prism.verification import grade
from megatron_prism.verification.problems import Problem


class InThisProcess:
    """A grading pool without processes."""

    code_options: ClassVar = {}

    def map(self, tasks, progress=None):
        return [grade.run(task, timeout_seconds=5, memory_mib=512) for task in tasks]


def write_answers(
    out: Path, suite: str, problems: list[Problem], completions: list[list[Completion]]
) -> SuiteResult:
    """Keep and grade `completions[p][s]`, sample s of problem p, in the evaluation folder `out`."""
    samples = len(completions[0])
    plan = SuitePlan(suite, problems, SamplingParams(), samples, list(range(len(problems))))
    with PartWriter(out / FOLDER / suite, 0) as parts:
        for problem, row in zip(problems, completions, strict=True):
            for number, completion in enumerate(row):
                parts.add(problem, number, [1, 2], completion)
    result = grade_suite(out, plan, InThisProcess())
    remove_parts(out)
    return result
