"""The verdicts on a program: one for each test, and the reason that counts, the first one that is not "correct".

Functions and statements run in one process of the program; a script runs once per test, each time in a new process.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from megatron_prism.verification.sandbox import checker
from megatron_prism.verification.sandbox.code_tests import Case, CodeTests
from megatron_prism.verification.sandbox.output_comparison import same_output
from megatron_prism.verification.sandbox.session import (
    CRASHED,
    FINISHED,
    PASSED,
    Runner,
    Session,
    Stop,
    reason_of,
    run_script,
)
from megatron_prism.verification.sandbox.statements import with_control

NOT_RUN = "not_run"
LARGEST_FILE_BYTES = 1 << 20
OPEN_FILES = 64
# LiveCodeBench's harness sets this limit before each program.
LIVECODEBENCH_RECURSION = 50_000


@dataclass(frozen=True)
class Limits:
    """The limits of one program with its tests.

    Attributes:
        timeout_seconds: wall time for the program with all its tests.
        memory_mib: address space of a process.
        stop_early: end after the first test that fails.
        time_factor: by how much this machine is slower than the reference (machine_speed.py); multiplies the
            `time_limit` of a test. `timeout_seconds` is used as it is.
    """

    timeout_seconds: float = 5.0
    memory_mib: int = 512
    stop_early: bool = False
    time_factor: float = 1.0


@dataclass(frozen=True)
class Judgement:
    """What became of a program.

    Attributes:
        reason: "correct" if every test passed, else the first other verdict.
        tests: the verdict on each test, in order; "not_run" for those that did not run.
    """

    reason: str
    tests: list[str]


def judge(runner: Runner, program: str, tests: CodeTests, limits: Limits) -> Judgement:
    """Run `program` on every test within the time limit."""
    deadline = time.monotonic() + limits.timeout_seconds
    if tests.cases:
        verdicts = _Scripts(program, tests, limits, deadline).verdicts(runner)
    else:
        verdicts = _Steps(program, tests, limits, deadline).verdicts(runner)
    verdicts += [NOT_RUN] * (tests.count - len(verdicts))
    return Judgement(next((verdict for verdict in verdicts if verdict != PASSED), PASSED), verdicts)


class _Scripts:
    """One process of the program for each test."""

    def __init__(self, program: str, tests: CodeTests, limits: Limits, deadline: float) -> None:
        self.program, self.cases, self.limits, self.deadline = program, tests.cases, limits, deadline

    def verdicts(self, runner: Runner) -> list[str]:
        """One verdict for each test that ran."""
        verdicts: list[str] = []
        for case in self.cases:
            failed = bool(verdicts) and verdicts[-1] != PASSED
            if (failed and self.limits.stop_early) or (verdicts and time.monotonic() >= self.deadline):
                break
            verdicts.append(self._verdict(runner, case))
        return verdicts

    def _verdict(self, runner: Runner, case: Case) -> str:
        job = {
            **_job(self.program, self.limits),
            "script": True,
            "any_exit": case.livecodebench,
            "recursion": LIVECODEBENCH_RECURSION if case.livecodebench else None,
        }
        deadline = _earlier(self.deadline, case.time_limit, self.limits)
        output = run_script(runner, job, case.input, deadline=deadline, expected=len(case.text))
        if isinstance(output, str):
            return output
        if case.checker:
            job = {**_job(case.checker, self.limits), "script": True}
            return checker.verdict(runner, case, output, job=job, deadline=self.deadline)
        # Not "replace": a character that is expected would equal every byte that is not UTF-8.
        return PASSED if same_output(output.decode("utf-8", "surrogateescape"), case.output) else "wrong"


class _Steps:
    """One process that runs a program and is then given steps."""

    def __init__(self, program: str, tests: CodeTests, limits: Limits, deadline: float) -> None:
        self.steps = with_control(tests.steps)
        self.limits, self.deadline = limits, deadline
        self.verdict_of: dict[int, str] = {}
        self.done = -1
        job = {
            **_job(program, limits),
            "script": False,
            "recursion": LIVECODEBENCH_RECURSION if tests.livecodebench else None,
        }
        longest = max(len(step.expected) for step in self.steps)
        self.session = Session(job, deadline, self._on_line, largest_line=longest)

    def verdicts(self, runner: Runner) -> list[str]:
        """One verdict for each test."""
        ended = self.session.run(runner)
        reason = ended if isinstance(ended, str) else CRASHED
        tests = range(self.steps[-1].test + 1)
        if self.done < 0:
            # The program itself failed, so every test fails for this reason.
            return [reason for _ in tests]
        if reason != FINISHED:
            self._note(reason)
        return [self.verdict_of.get(test, NOT_RUN) for test in tests]

    def _on_line(self, line: str) -> None:
        if self.done < 0:
            # After "ran" the process waits for the tests; replies to tests that it has not seen are forged.
            if line != "ran" or self.session.more_follows:
                raise Stop(reason_of(line) or CRASHED)
            self.session.send([step.request for step in self.steps])
        else:
            step = self.steps[self.done]
            verdict = PASSED if line == step.expected else reason_of(line) or step.failure
            self._note(verdict)
            if verdict != PASSED and self.limits.stop_early:
                raise Stop(FINISHED)
        self.done += 1
        if self.done == len(self.steps):
            raise Stop(FINISHED)
        self.session.deadline = _earlier(self.deadline, self.steps[self.done].time_limit, self.limits)

    def _note(self, verdict: str) -> None:
        """A test passes if all its steps do; otherwise the first reason counts."""
        test = self.steps[self.done].test
        if self.verdict_of.get(test, PASSED) == PASSED:
            self.verdict_of[test] = verdict


def _job(program: str, limits: Limits) -> dict[str, Any]:
    return {
        "program": program,
        "limits": {
            "RLIMIT_CPU": math.ceil(limits.timeout_seconds) + 1,
            "RLIMIT_AS": limits.memory_mib << 20,
            "RLIMIT_FSIZE": LARGEST_FILE_BYTES,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_CORE": 0,
        },
    }


def _earlier(deadline: float, time_limit: float | None, limits: Limits) -> float:
    if time_limit is None:
        return deadline
    return min(deadline, time.monotonic() + time_limit * limits.time_factor)
