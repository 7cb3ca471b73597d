"""All graders in two functions: `grade` for one answer, `grade_all` for many answers in a pool of worker processes.

This module is the grader that a `GradingPool` runs in its workers: `prepare` and `run` are its two hooks.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

from megatron_prism.errors import DataError, suggest
from megatron_prism.platform.hardware import package_version
from megatron_prism.verification.answers.algebra import prepare as prepare_math
from megatron_prism.verification.answers.choice import choice_letter, extract_choice
from megatron_prism.verification.answers.equality import same_answer
from megatron_prism.verification.answers.math_answers import extract_math
from megatron_prism.verification.answers.programs import extract_code
from megatron_prism.verification.benchmarks import BENCHMARKS
from megatron_prism.verification.pool.grading_pool import GradingPool
from megatron_prism.verification.sandbox.bubblewrap import bubblewrap_version
from megatron_prism.verification.sandbox.code_tests import CodeTest
from megatron_prism.verification.sandbox.isolation import (
    STRONG,
    check_mode,
    open_runner,
    require_sandbox,
    run_tests,
)
from megatron_prism.verification.sandbox.judge import Limits
from megatron_prism.verification.sandbox.machine_speed import time_factor as measured_time_factor
from megatron_prism.verification.sandbox.session import PASSED, Runner

# Raised when a change of the rules changes verdicts. Receipts state it, and `prism grade` grades old answers again.
GRADER_VERSION = "2"
KINDS = ("math", "choice", "short", "code")
# Kinds whose answers are compared by the kind of the reference, which may need sympy.
SYMBOLIC = ("math", "short")
CORRECT, WRONG, NO_ANSWER = "correct", "wrong", "no_answer"


@dataclass(frozen=True)
class Grade:
    """The verdict on one completion.

    Attributes:
        correct: whether the answer counts as correct.
        reason: "correct", "wrong", "no_answer", "timeout", "memory", "crashed" or "error: NAME"; for code
            also "assertion", "output", "exit", "exception: NAME" and "checker: REASON" (docs/verification.md).
        extracted: the answer that was graded (the letter, the box's content, the program), if one was found.
        tests: for code, the verdict on each test: a reason as above, or "not_run".
        published: the verdict of the benchmark's public grader, if the problem names a benchmark; None also if that
            grader failed or took too long.
    """

    correct: bool
    reason: str
    extracted: str | None = None
    tests: list[str] = field(default_factory=list)
    published: bool | None = None


@dataclass(frozen=True)
class GradeItem:
    """One completion to grade against one problem; `benchmark` is a name in `BENCHMARKS` or empty."""

    kind: str
    completion: str
    answer: str = ""
    tests: list[CodeTest] = field(default_factory=list)
    benchmark: str = ""


def grade(
    kind: str,
    completion: str,
    answer: str = "",
    *,
    tests: Sequence[CodeTest] = (),
    benchmark: str = "",
    timeout_seconds: float = 5.0,
    memory_mib: int = 512,
    sandbox: str = STRONG,
    runner: Runner | None = None,
    stop_early: bool = False,
    time_factor: float = 1.0,
) -> Grade:
    """Grade one completion in this process (code runs in its own). Prefer `grade_all` for text a model wrote.

    Args:
        kind: "math" (`answer` is the box's content), "choice" (`answer` is a letter), "short" (`answer` is a
            word, phrase or number) or "code" (`tests` as in sandbox/code_tests.py).
        benchmark: its rules apply (benchmarks.py). The verdict of its public grader is given by `grade_all` only.
        timeout_seconds: wall time of a program; for the other kinds only the pool limits the time.
        memory_mib: address space of a program.
        sandbox: "strong" or "weak": how a program is isolated.
        runner: starts programs; by default one is made for this call.
        stop_early, time_factor: as in `sandbox.judge.Limits`.

    Raises:
        DataError: for an unknown kind, or for tests that are missing or malformed.
        ConfigError: if `sandbox` is unknown or does not work on this machine.
    """
    tolerance = BENCHMARKS[benchmark].tolerance if benchmark else 0.0
    if kind in SYMBOLIC:
        extracted = extract_math(completion)
        return _compared(extracted, extracted is not None and same_answer(extracted, answer, tolerance))
    if kind == "choice":
        extracted = extract_choice(completion)
        return _compared(extracted, extracted == choice_letter(answer))
    if kind == "code":
        extracted = extract_code(completion)
        if extracted is None:
            return Grade(False, NO_ANSWER)
        limits = Limits(timeout_seconds, memory_mib, stop_early, time_factor)
        judged = run_tests(extracted, tests, limits, sandbox=sandbox, runner=runner)
        return Grade(judged.reason == PASSED, judged.reason, extracted, judged.tests)
    raise DataError(f"problem kind '{kind}' cannot be graded{suggest(kind, KINDS)}")


def grade_all(
    items: Sequence[GradeItem],
    pool: GradingPool,
    progress: Callable[[int], None] = lambda finished: None,
    sandbox: str = STRONG,
) -> list[Grade]:
    """Grade many completions in the pool's processes, and return the grades in the order of `items`.

    A completion that exceeds the limits or breaks its worker is graded as wrong, with the reason.

    Args:
        sandbox: "strong" or "weak": how programs are isolated; it affects no other kind.

    Raises:
        DataError: for an unknown kind, before any work.
        ConfigError: before any work, if `sandbox` is unknown, or if the items contain a program and the mode does not
            work on this machine.
    """
    check_mode(sandbox)
    for item in items:
        if item.kind not in KINDS:
            raise DataError(f"problem kind '{item.kind}' cannot be graded{suggest(item.kind, KINDS)}")
        if item.benchmark and item.benchmark not in BENCHMARKS:
            raise DataError(f"benchmark '{item.benchmark}' has no rules{suggest(item.benchmark, BENCHMARKS)}")
    if any(item.kind == "code" for item in items):
        require_sandbox(sandbox)
    results = pool.map(
        [{**asdict(item), "sandbox": sandbox, **_options(item, pool)} for item in items], progress
    )
    grades = [Grade(False, r["failed"]) if "failed" in r else Grade(**r) for r in results]
    # The public grader runs in tasks of its own: if it hangs or fails, our verdict is not lost.
    named = [index for index, item in enumerate(items) if item.benchmark]
    verdicts = pool.map([{**asdict(items[index]), "published": True} for index in named])
    for index, verdict in zip(named, verdicts, strict=True):
        grades[index] = replace(grades[index], published=verdict.get("published"))
    return grades


def grader_versions(kinds: Iterable[str], sandbox: str = STRONG) -> dict[str, str | None]:
    """For a receipt: the package versions that decide these verdicts and, for programs, the mode of isolation."""
    versions = {"grader": GRADER_VERSION, "math-verify": package_version("math-verify")}
    versions |= {name: package_version(name) for name in ("latex2sympy2_extended", "sympy")}
    if "code" in kinds:
        versions["sandbox"] = sandbox
        versions["time_factor"] = str(measured_time_factor())
        if sandbox == STRONG:
            versions["bubblewrap"] = bubblewrap_version()
    return versions


def prepare(task: Mapping[str, Any], *, memory_mib: int) -> None:
    """Pool hook: import what this kind of task needs and start its sandbox; neither counts towards the time limit."""
    if task["kind"] in SYMBOLIC:
        prepare_math()
    if task["kind"] == "code" and not task.get("published"):
        _warm_runner(task["sandbox"], memory_mib).open()


def run(task: Mapping[str, Any], *, timeout_seconds: float, memory_mib: int) -> dict[str, Any]:
    """Pool hook: grade one task, which holds the fields of a `GradeItem` and `sandbox`."""
    if task.get("published"):
        return {"published": BENCHMARKS[task["benchmark"]].published(task["completion"], task["answer"])}
    runner = _warm_runner(task["sandbox"], memory_mib) if task["kind"] == "code" else None
    return asdict(grade(**task, timeout_seconds=timeout_seconds, memory_mib=memory_mib, runner=runner))


@cache
def _warm_runner(sandbox: str, memory_mib: int) -> Runner:
    """The runner of this worker process; it stays open until the process ends."""
    opened = ExitStack()
    atexit.register(opened.close)
    return opened.enter_context(open_runner(sandbox, memory_mib))


def _options(item: GradeItem, pool: GradingPool) -> Mapping[str, Any]:
    return pool.code_options if item.kind == "code" else {}


def _compared(extracted: str | None, correct: bool) -> Grade:
    if extracted is None:
        return Grade(False, NO_ANSWER)
    return Grade(correct, CORRECT if correct else WRONG, extracted)
