"""The worker's side of a grading pool: read a task, announce the start, grade, answer; one task at a time.

Runs in the main thread of a bare interpreter (`python -P -m`), so it never re-imports the user's script and
signals work. Standard output carries frames only: whatever a grader prints goes to /dev/null.
"""

from __future__ import annotations

import importlib
import os
import resource
import select
import sys
from typing import Any

from megatron_prism.verification.pool.frames import decode, encode

# How often an idle worker looks whether its parent still lives. End of input says so too, except when a
# process that the parent forked still holds the other end of the pipe.
PARENT_CHECK_SECONDS = 5.0
# CPU seconds past the time limit after which the kernel ends the worker, should nobody be left to kill it.
CPU_GRACE_SECONDS = 5


def main(module_name: str, timeout_seconds: float, memory_mib: int) -> None:
    """Serve tasks until the parent closes the pipe or dies."""
    requests, replies = os.dup(0), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grader = importlib.import_module(module_name)
    parent = os.getppid()
    buffer = bytearray()
    while (task := _next_task(requests, buffer, parent)) is not None:
        # What a kind of task needs (importing sympy takes seconds) is loaded before the clock starts.
        grader.prepare(task, memory_mib=memory_mib)
        _limit_memory(memory_mib)
        _limit_cpu(timeout_seconds)
        _send(replies, {"event": "started"})
        _send(replies, {"event": "done", "result": _run(grader, task, timeout_seconds, memory_mib)})


def _run(grader: Any, task: dict[str, Any], timeout_seconds: float, memory_mib: int) -> dict[str, Any]:
    try:
        result: dict[str, Any] = grader.run(task, timeout_seconds=timeout_seconds, memory_mib=memory_mib)
    except MemoryError:
        return {"failed": "memory"}
    except Exception as problem:
        return {"failed": f"error: {type(problem).__name__}"}
    return result


def _next_task(requests: int, buffer: bytearray, parent: int) -> dict[str, Any] | None:
    while (task := decode(buffer)) is None:
        ready, _, _ = select.select([requests], [], [], PARENT_CHECK_SECONDS)
        if not ready:
            if os.getppid() != parent:
                return None
            continue
        data = os.read(requests, 1 << 20)
        if not data:
            return None
        buffer += data
    return task


def _send(replies: int, message: dict[str, Any]) -> None:
    frame = memoryview(encode(message))
    while frame:
        frame = frame[os.write(replies, frame) :]


def _limit_memory(memory_mib: int) -> None:
    limit = memory_mib << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_cpu(timeout_seconds: float) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + timeout_seconds) + CPU_GRACE_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    try:
        main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
    except BrokenPipeError:
        os._exit(0)
