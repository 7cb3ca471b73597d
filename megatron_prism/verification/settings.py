"""The grading settings of a stage: every stage that grades completions has them as its field `grading`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megatron_prism.pipeline.config import positive, to_mapping
from megatron_prism.pipeline.stage import tuning
from megatron_prism.verification import grade
from megatron_prism.verification.pool.grading_pool import GradingPool
from megatron_prism.verification.problems import Problem
from megatron_prism.verification.sandbox.isolation import STRONG, check_mode, require_sandbox
from megatron_prism.verification.sandbox.machine_speed import time_factor

# Processes on one machine.
MOST_WORKERS = 4096


@dataclass
class GradingSettings:
    """The pool of grading processes and its limits.

    Attributes:
        workers: number of processes; not part of a stage's fingerprint.
        timeout_seconds: wall time for one completion, in seconds of the reference machine: a slower machine gets more
            (sandbox/machine_speed.py).
        program_seconds: the same for a program with all its tests; None: timeout_seconds.
        memory_mib: address space of a worker, and of a program under test, in MiB.
        sandbox: how programs that a model wrote are isolated: "strong", or "weak", which is no isolation.
        stop_early: end a program after the first test that it fails. The verdict is the same; those on the other tests
            are then "not_run".
    """

    workers: int = tuning(2)
    timeout_seconds: float = 5.0
    memory_mib: int = 2048
    sandbox: str = STRONG
    stop_early: bool = False
    program_seconds: float | None = None

    def __post_init__(self) -> None:
        positive(self, "workers", most=MOST_WORKERS, group="grading")
        positive(self, "timeout_seconds", "memory_mib", group="grading")
        if self.program_seconds is not None:
            positive(self, "program_seconds", group="grading")
        check_mode(self.sandbox)

    def identity(self) -> dict[str, Any]:
        """All but the number of workers; `program_seconds` only if it is set, because older runs did not have it."""
        decisive = {key: value for key, value in to_mapping(self).items() if key != "workers"}
        return {key: value for key, value in decisive.items() if value is not None}

    def check_kinds(self, problems: Iterable[Problem]) -> set[str]:
        """The kinds of these problems. Called before a model is loaded, so that a missing sandbox is reported at once.

        Raises:
            ConfigError: if there are code problems and programs cannot be isolated in this way on this machine.
        """
        kinds = {problem.kind for problem in problems}
        if "code" in kinds:
            require_sandbox(self.sandbox)
        return kinds

    def open_pool(self) -> GradingPool:
        """A pool with these limits; use it as a context manager."""
        factor = time_factor()
        program = {} if self.program_seconds is None else {"limit_seconds": self.program_seconds * factor}
        return GradingPool(
            grade.__name__,
            workers=self.workers,
            timeout_seconds=self.timeout_seconds * factor,
            memory_mib=self.memory_mib,
            code_options={"stop_early": self.stop_early, "time_factor": factor, **program},
        )
