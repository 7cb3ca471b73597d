"""Problem suites: JSON lines into checked `Problem`s, and subsets that do not depend on the order of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError, suggest
from megatron_prism.pipeline.json_text import is_blank, read_records
from megatron_prism.platform.console import get_logger
from megatron_prism.verification.benchmarks import BENCHMARKS
from megatron_prism.verification.grade import KINDS, grade
from megatron_prism.verification.sandbox.code_tests import CodeTest, parse_tests

TEXT_KEYS = ("id", "domain", "prompt", "kind", "answer")
KEYS = (*TEXT_KEYS, "tests")
# How many dropped problems of a file are named in the log.
NAMED = 5

log = get_logger(__name__)


@dataclass(frozen=True)
class Problem:
    """One held-out problem.

    Attributes:
        id: unique within its suite.
        domain: "math", "science" or "code".
        prompt: the complete text before the answer, including role names such as `User:`.
        kind: how it is graded: "math", "choice", "short" or "code".
        answer: content of the reference's box, the letter, or the short answer; empty for code.
        tests: for code as verification/sandbox/code_tests.py describes, else empty.
        benchmark: name of the benchmark whose rules apply (benchmarks.py), or empty.
    """

    id: str
    domain: str
    prompt: str
    kind: str
    answer: str = ""
    tests: list[CodeTest] = field(default_factory=list)
    benchmark: str = ""

    def record(self) -> dict[str, Any]:
        """The problem as a line of a suite; `benchmark` is written only if there is one."""
        fields = asdict(self)
        return fields if self.benchmark else {key: fields[key] for key in KEYS}


def suite_names(folder: Path) -> list[str]:
    """The suites in a `problems/` folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.jsonl"))


def load_suite(folder: Path, suite: str, limit: int | None = None) -> list[Problem]:
    """The problems of `folder/SUITE.jsonl` that can be graded, in the file's order; see `read_suite`."""
    return read_suite(folder, suite, limit)[0]


def read_suite(folder: Path, suite: str, limit: int | None = None) -> tuple[list[Problem], dict[str, str]]:
    """The problems of `folder/SUITE.jsonl`, in the file's order, and why others were dropped, by id.

    A problem whose own reference answer would not earn in a box is dropped and named: no model could solve it.

    Args:
        limit: number of problems to keep; None keeps all. The problems whose ids have the lowest hashes are kept, so a
            subset is a random sample, is the same on every machine, and is contained in every larger subset.

    Raises:
        DataError: with file, line and key, if a record is not a valid problem.
    """
    path = folder / f"{suite}.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such problem suite{suggest(suite, suite_names(folder))}")
    problems: list[Problem] = []
    dropped: dict[str, str] = {}
    lines: dict[str, str] = {}
    for record, where in read_records(path):
        problem = problem_of(record, where)
        if problem.id in lines:
            raise DataError(
                f"{where}: id '{problem.id}' is already used on line {lines[problem.id].rpartition(':')[2]}; "
                "make ids unique"
            )
        lines[problem.id] = where
        fault = unreachable(problem)
        if fault is not None:
            dropped[problem.id] = fault
            if len(dropped) <= NAMED:
                log.warning("%s: problem '%s' is dropped: %s", where, problem.id, fault)
            continue
        problems.append(problem)
    if dropped:
        log.warning(
            "%s: %d of %d problems are dropped, because no answer can earn", path, len(dropped), len(lines)
        )
    if not problems and dropped:
        raise DataError(f"{path}: no problem can be graded; the first: {next(iter(dropped.values()))}")
    if not problems:
        raise DataError(
            f"{path}: contains no problems; make the corpus again, or remove '{suite}' from suites"
        )
    return subset(problems, limit), dropped


def unreachable(problem: Problem) -> str | None:
    """Why even the reference answer of a problem, in a box, would not earn; None if it does (or for code)."""
    if problem.kind == "code":
        return None
    if problem.benchmark and not BENCHMARKS[problem.benchmark].answers.fullmatch(problem.answer):
        return (
            f"its answer '{problem.answer[:60]}' is not of the form that benchmark '{problem.benchmark}' has"
        )
    verdict = grade(problem.kind, f"\\boxed{{{problem.answer}}}", problem.answer, benchmark=problem.benchmark)
    if verdict.correct:
        return None
    return (
        f"its answer '{problem.answer[:60]}' in a box is graded '{verdict.reason}' as kind '{problem.kind}'"
    )


def problem_of(record: dict[str, Any], where: str) -> Problem:
    """A JSON object as a `Problem`; `where` is the FILE:LINE for error messages.

    Raises:
        DataError: for a missing or unknown key, a wrong type, or a missing answer or tests.
    """
    _check_types(record, where)
    problem = Problem(**record)
    if problem.kind not in KINDS:
        raise DataError(f"{where}: kind '{problem.kind}' cannot be graded{suggest(problem.kind, KINDS)}")
    if problem.benchmark:
        rules = BENCHMARKS.get(problem.benchmark)
        if rules is None:
            raise DataError(
                f"{where}: benchmark '{problem.benchmark}' has no rules{suggest(problem.benchmark, BENCHMARKS)}"
            )
        if rules.kind != problem.kind:
            raise DataError(
                f"{where}: benchmark '{problem.benchmark}' has problems of kind '{rules.kind}', not '{problem.kind}'"
            )
    if is_blank(problem.prompt):
        raise DataError(f"{where}: 'prompt' is blank; every problem needs one")
    if problem.kind == "code":
        parse_tests(problem.tests, f"{where}: 'tests'")
    if problem.kind != "code" and is_blank(problem.answer):
        raise DataError(f"{where}: 'answer' is blank; a '{problem.kind}' problem needs one")
    return problem


def subset(problems: Iterable[Problem], limit: int | None) -> list[Problem]:
    """At most `limit` problems, those whose id hashes lowest, in their original order."""
    kept = list(problems)
    if limit is None or limit >= len(kept):
        return kept
    chosen = sorted(kept, key=lambda problem: hashlib.sha256(problem.id.encode()).digest())[:limit]
    ids = {problem.id for problem in chosen}
    return [problem for problem in kept if problem.id in ids]


def _check_types(record: dict[str, Any], where: str) -> None:
    for key in KEYS:
        if key not in record:
            raise DataError(f"{where}: key '{key}' is missing; a problem has {', '.join(KEYS)}")
    known = (*KEYS, "benchmark")
    for key in record:
        if key not in known:
            raise DataError(f"{where}: unknown key '{key}'{suggest(key, known)}")
    for key in (*TEXT_KEYS, "benchmark"):
        if not isinstance(record.get(key, ""), str):
            raise DataError(f"{where}: '{key}' must be text, found {type(record[key]).__name__}")
    if not isinstance(record["tests"], list):
        raise DataError(f"{where}: 'tests' must be a list, found {type(record['tests']).__name__}")
