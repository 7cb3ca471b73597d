"""A pool of long-lived worker processes. A worker that exceeds its time or memory is killed and replaced.

Graders read text that a model wrote: `9**9**9`, an endless loop or a regular expression with exponential cost must
take no longer than one time limit, and must give a result instead of hanging the run. A thread cannot be killed and
`signal.alarm` does not interrupt C code, so each worker is a process. It is started as a fresh interpreter, not forked:
a fork of a process that holds torch or CUDA is not safe, and a spawn would import the user's main script again.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.platform.source_tree import ROOT
from megatron_prism.verification.pool.frames import decode, encode
from megatron_prism.verification.sandbox import cgroup

# Time for a worker to start and import what its task needs; only a broken installation takes longer.
START_SECONDS = 120.0
# A worker is killed this long after the time limit: a grader that enforces the limit itself can answer first.
GRACE_SECONDS = 0.5
# The pool gives up after this many workers in a row have died before their task started.
START_ATTEMPTS = 3


class GradingPool:
    """Runs tasks in worker processes, each under a time and a memory limit.

    Use it as a context manager; leaving it kills every worker. Workers also end by themselves when this
    process dies.

    Args:
        grader: module with `prepare(task, *, memory_mib) -> None` (imports, not timed) and
            `run(task, *, timeout_seconds, memory_mib) -> dict`; tasks and results are JSON-ready mappings.
        workers: number of processes.
        timeout_seconds: wall time for one task; start-up and imports are not counted.
        memory_mib: address space of a worker in MiB (RLIMIT_AS; sympy alone needs about 300).
        code_options: what `grade.grade_all` adds to the tasks that run a program.

    Raises:
        ConfigError: if a number or limit is not positive.
    """

    def __init__(
        self,
        grader: str,
        *,
        workers: int = 1,
        timeout_seconds: float = 5.0,
        memory_mib: int = 2048,
        code_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.code_options = dict(code_options or {})
        for name, value in (
            ("workers", workers),
            ("timeout_seconds", timeout_seconds),
            ("memory_mib", memory_mib),
        ):
            if value <= 0:
                raise ConfigError(f"grading pool: {name}={value}: must be greater than zero")
        self.timeout_seconds = timeout_seconds
        self._command = [
            *(sys.executable, "-P", "-m", "megatron_prism.verification.pool.worker_process"),
            *(grader, str(timeout_seconds), str(memory_mib)),
        ]
        self._workers: list[_Worker | None] = [None] * workers
        self._finalizer = weakref.finalize(self, _kill_at_exit, self._workers, os.getpid())

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill every worker and reap it. The pool starts new ones if it is used again."""
        _kill_all(self._workers)

    def pids(self) -> list[int]:
        """Process ids of the workers alive now."""
        return [worker.process.pid for worker in self._workers if worker is not None]

    def map(
        self,
        tasks: Sequence[Mapping[str, Any]],
        progress: Callable[[int], None] = lambda finished: None,
    ) -> list[dict[str, Any]]:
        """Run every task, and return the results in the order of `tasks`.

        A task may have a time limit of its own in `limit_seconds`, which the grader does not see.

        A task that fails gives `{"failed": reason}` with reason "timeout", "memory", "crashed" or
        "error: EXCEPTION"; anything else is what the grader returned.

        Args:
            progress: called with 1 after each finished task.

        Raises:
            RuntimeError: if workers repeatedly die before a task starts (a broken installation).
        """
        results: list[dict[str, Any] | None] = [None] * len(tasks)
        waiting = deque(range(len(tasks)))
        busy: dict[int, int] = {}
        failures_to_start = 0
        try:
            while waiting or busy:
                for slot in range(len(self._workers)):
                    if waiting and slot not in busy:
                        busy[slot] = waiting.popleft()
                        self._worker(slot).submit(tasks[busy[slot]])
                for slot in self._wait(busy):
                    worker = self._worker(slot)
                    result = worker.result()
                    if result is None:
                        continue
                    if result.get("failed") in ("timeout", "memory", "crashed"):
                        self._drop(slot)
                    index = busy.pop(slot)
                    if result.get("failed") == "crashed" and not worker.started:
                        failures_to_start += 1
                        if failures_to_start >= START_ATTEMPTS:
                            raise RuntimeError(
                                f"grading workers end before their task starts; check that this runs: {self._command}"
                            )
                        waiting.appendleft(index)
                        continue
                    failures_to_start = 0
                    results[index] = result
                    progress(1)
        except BaseException:
            # After an interrupt, workers are still busy with tasks whose results are no longer needed.
            self.close()
            raise
        return [result for result in results if result is not None]

    def _worker(self, slot: int) -> _Worker:
        worker = self._workers[slot]
        if worker is None:
            worker = self._workers[slot] = _Worker(self._command, self.timeout_seconds)
        return worker

    def _drop(self, slot: int) -> None:
        worker = self._workers[slot]
        if worker is not None:
            worker.kill()
        self._workers[slot] = None

    def _wait(self, busy: Mapping[int, int]) -> list[int]:
        """The busy slots whose worker has sent something or has passed its deadline."""
        with selectors.DefaultSelector() as selector:
            for slot in busy:
                selector.register(self._worker(slot).replies, selectors.EVENT_READ, slot)
            first = min(self._worker(slot).deadline for slot in busy)
            ready = {key.data for key, _ in selector.select(max(0.0, first - time.monotonic()))}
        now = time.monotonic()
        for slot in ready:
            self._worker(slot).receive()
        return [slot for slot in busy if slot in ready or self._worker(slot).deadline <= now]


class _Worker:
    """One process, its pipe, and its current task."""

    def __init__(self, command: Sequence[str], timeout_seconds: float) -> None:
        root = str(ROOT)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # In its own session, so that Ctrl-C reaches only the parent and the whole process group can be killed at
            # once.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests = self.process.stdin
        self.replies = self.process.stdout.fileno()
        self.timeout_seconds = self.limit_seconds = timeout_seconds
        self.buffer = bytearray()
        self.deadline = 0.0
        self.started = False
        self.ended = False

    def submit(self, task: Mapping[str, Any]) -> None:
        self.started = False
        self.deadline = time.monotonic() + START_SECONDS
        self.limit_seconds = task.get("limit_seconds", self.timeout_seconds)
        frame = memoryview(encode(dict(task)))
        try:
            while frame:
                frame = frame[self.requests.write(frame) or 0 :]
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True
            self.deadline = 0.0

    def receive(self) -> None:
        data = os.read(self.replies, 1 << 20)
        self.ended = self.ended or not data
        self.buffer += data

    def result(self) -> dict[str, Any] | None:
        """The result of the task, the reason why it failed, or None while it runs."""
        while (message := decode(self.buffer)) is not None:
            if message["event"] == "done":
                result: dict[str, Any] = message["result"]
                return result
            self.started = True
            self.deadline = time.monotonic() + self.limit_seconds + GRACE_SECONDS
        if self.ended:
            return {"failed": "crashed"}
        if time.monotonic() >= self.deadline:
            return {"failed": "timeout"}
        return None

    def kill(self) -> None:
        import psutil

        # A program under test has its own process group. It can be found as a child only while its parent lives.
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        for pid in (*(child.pid for child in children), self.process.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self.process.wait()
        cgroup.sweep(owner=self.process.pid)
        self.requests.close()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _kill_all(workers: list[_Worker | None]) -> None:
    for slot, worker in enumerate(workers):
        if worker is not None:
            worker.kill()
            workers[slot] = None


def _kill_at_exit(workers: list[_Worker | None], owner: int) -> None:
    # A forked copy of the owner inherits this call and must not kill the owner's workers.
    if os.getpid() == owner:
        _kill_all(workers)
