"""The stage that takes prompts from a corpus or from files and drops those that cannot be graded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.readers import source_files
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.file_hash import hash_file
from megatron_prism.pipeline.json_text import read_records
from megatron_prism.pipeline.placeholder import resolved
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger
from megatron_prism.rl.prompts import PROMPTS, count_by_domain, write_prompts
from megatron_prism.verification.grade import GradeItem, grade_all, grader_versions
from megatron_prism.verification.problems import Problem, problem_of, unreachable
from megatron_prism.verification.settings import GradingSettings

NO_ANSWER, FAILED_SOLUTION, REPEATED = "no answer", "reference solution fails", "repeated id"
# The reference answer itself would not earn.
UNREACHABLE = "answer fails its own test"

log = get_logger(__name__)


@dataclass
class CheckPrompts(Stage):
    """Input: `corpus`, if it has `prompts/`; or `files`. Output: `prompts/DOMAIN.jsonl`.

    A line is a problem as in an evaluation suite, with an optional additional key `solution`: a completion that must be
    graded as correct. Prompts without an answer or tests, prompts whose answer would not earn in
    a box, prompts whose solution fails, and repeated ids are dropped and counted by reason.

    Attributes:
        files: JSON lines, or folders of them.
        domains: the domains to take; an empty list takes all.
        grading: the grading processes, their limits, and how programs that are reference solutions are isolated.
    """

    kind: ClassVar[str] = "prompts"
    version: ClassVar[int] = 2  # version 1 of the grader gave other verdicts

    files: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    grading: GradingSettings = field(default_factory=GradingSettings)

    def __post_init__(self) -> None:
        self.files = [resolved(file) for file in self.files]

    def identity(self) -> dict[str, Any]:
        hashes = [hash_file(each) for name in self.files for each in source_files(Path(name))]
        return super().identity() | {"files": hashes}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        named = [each for name in self.files for each in source_files(Path(name))]
        if "corpus" in inputs and not named:
            named = sorted(inputs["corpus"].file(PROMPTS).glob("*.jsonl"))
        if not named:
            raise ConfigError(
                "files=[]: name files of JSON lines with prompts, or give the stage a corpus that has prompts"
            )
        dropped: dict[str, int] = {}
        kept: dict[str, Problem] = {}
        solutions: dict[str, str] = {}
        for problem, solution, reason in _read(named, self.domains):
            reason = reason or (REPEATED if problem is not None and problem.id in kept else None)
            if reason or problem is None:
                dropped[str(reason)] = dropped.get(str(reason), 0) + 1
                continue
            kept[problem.id] = problem
            if solution is not None:
                solutions[problem.id] = solution
        failed = self._with_failing_solution(kept, solutions)
        if failed:
            dropped[FAILED_SOLUTION] = len(failed)
        problems = [problem for name, problem in kept.items() if name not in failed]
        if not problems:
            raise DataError(f"{named[0]}: no prompt is left; dropped prompts by reason: {dropped}")
        write_prompts(out, problems)
        log.info("%d prompts; dropped: %s", len(problems), dropped or "none")
        return {
            "prompts": count_by_domain(problems),
            "dropped": dropped,
            "with_solution": len(solutions),
            "failed": sorted(failed)[:20],
            "grader": grader_versions({problem.kind for problem in problems}, self.grading.sandbox),
        }

    def _with_failing_solution(
        self, problems: Mapping[str, Problem], solutions: Mapping[str, str]
    ) -> set[str]:
        items = [
            GradeItem(problems[name].kind, solution, problems[name].answer, problems[name].tests)
            for name, solution in solutions.items()
        ]
        if not items:
            return set()
        with self.grading.open_pool() as pool:
            grades = grade_all(items, pool, sandbox=self.grading.sandbox)
        return {name for name, verdict in zip(solutions, grades, strict=True) if not verdict.correct}


def _read(files: list[Path], domains: list[str]) -> Iterator[tuple[Problem | None, str | None, str | None]]:
    """(problem, solution, reason to drop it) for every line. A line that is not a problem is an error."""
    for file in files:
        for record, where in read_records(file):
            if domains and record.get("domain") not in domains:
                continue
            solution = record.pop("solution", None)
            answer = record.get("tests") if record.get("kind") == "code" else record.get("answer")
            if answer in (None, []) or (isinstance(answer, str) and not answer.strip()):
                yield None, None, NO_ANSWER
                continue
            problem = problem_of(record, where)
            yield problem, solution, UNREACHABLE if unreachable(problem) else None
