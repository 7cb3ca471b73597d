"""One door to all graders: `grade` for one answer, `grade_all` for many in a pool of killable processes.

This module is the grader a `GradingPool` runs: `prepare` and `run` are its two hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_prism.errors import DataError, suggest
from megatron_prism.verification import choice, code, math
from megatron_prism.verification.workers import GradingPool

KINDS = ("math", "choice", "code")
CORRECT, WRONG, NO_ANSWER = "correct", "wrong", "no_answer"


@dataclass(frozen=True)
class Grade:
    """The verdict on one completion.

    Attributes:
        correct: whether it counts.
        reason: "correct", "wrong", "no_answer", "timeout", "memory", "crashed" or "error: NAME"; for code
        also
            "assertion", "exit" and "exception: NAME".
        extracted: the answer that was graded (the letter, the box's content, the program), if one was found.
    """

    correct: bool
    reason: str
    extracted: str | None = None


@dataclass(frozen=True)
class GradeItem:
    """One completion to grade against one problem."""

    kind: str
    completion: str
    answer: str = ""
    tests: list[str] = field(default_factory=list)


def grade(
    kind: str,
    completion: str,
    answer: str = "",
    tests: Sequence[str] = (),
    timeout_seconds: float = 5.0,
    memory_mib: int = 512,
) -> Grade:
    """Grade one completion in this process (code runs in its own). Prefer `grade_all` for text a model wrote.

    Args:
        kind: "math" (`answer` is the box's content), "choice" (`answer` is a letter) or "code" (`tests` are
            asserts).
        timeout_seconds: wall time of a program; math and choice have the pool's limit.
        memory_mib: address space of a program.

    Raises:
        DataError: for an unknown kind.
    """
    if kind == "math":
        extracted = math.extract_math(completion)
        return _compared(extracted, extracted is not None and math.math_equal(extracted, answer))
    if kind == "choice":
        extracted = choice.extract_choice(completion)
        return _compared(extracted, extracted == answer.strip().upper())
    if kind == "code":
        extracted = code.extract_code(completion)
        if extracted is None:
            return Grade(False, NO_ANSWER)
        reason = code.run_tests(extracted, tests, timeout_seconds, memory_mib)
        return Grade(reason == code.PASSED, reason, extracted)
    raise DataError(f"problem kind '{kind}' cannot be graded{suggest(kind, KINDS)}")


def grade_all(
    items: Sequence[GradeItem],
    pool: GradingPool,
    progress: Callable[[int], None] = lambda finished: None,
) -> list[Grade]:
    """Grade many completions in the pool's processes; grades in the order of `items`.

    A completion that exceeds the limits or breaks its worker is wrong, with that as the reason.

    Raises:
        DataError: for an unknown kind, before any work.
    """
    for item in items:
        if item.kind not in KINDS:
            raise DataError(f"problem kind '{item.kind}' cannot be graded{suggest(item.kind, KINDS)}")
    results = pool.map([asdict(item) for item in items], progress)
    return [Grade(False, r["failed"]) if "failed" in r else Grade(**r) for r in results]


def prepare(task: Mapping[str, Any]) -> None:
    """Pool hook: imports for this kind of task, outside its time limit."""
    if task["kind"] == "math":
        math.prepare()


def run(task: Mapping[str, Any], *, timeout_seconds: float, memory_mib: int) -> dict[str, Any]:
    """Pool hook: grade one `GradeItem` given as a mapping."""
    return asdict(grade(**task, timeout_seconds=timeout_seconds, memory_mib=memory_mib))


def _compared(extracted: str | None, correct: bool) -> Grade:
    if extracted is None:
        return Grade(False, NO_ANSWER)
    return Grade(correct, CORRECT if correct else WRONG, extracted)
