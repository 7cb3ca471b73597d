"""The worker process of a grading pool: it reads a task, reports the start, grades, and sends the result.

It runs in the main thread of a bare interpreter (`python -P -m`), so it does not import the user's script again, and
signals work. Only frames go through the pipe: what a grader prints goes to /dev/null.
"""

from __future__ import annotations

import importlib
import os
import resource
import select
import sys
from typing import Any

from megatron_prism.verification.pool.frames import decode, encode

# How often an idle worker checks that its parent is alive. The end of input also shows that the parent has ended,
# unless another process forked by the parent still holds the other end of the pipe.
PARENT_CHECK_SECONDS = 5.0
# CPU seconds past the time limit after which the kernel ends the worker, in case the parent has died.
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
        limit = task.pop("limit_seconds", timeout_seconds)
        # Imports (sympy takes seconds) do not count towards the time limit.
        grader.prepare(task, memory_mib=memory_mib)
        _limit_memory(memory_mib)
        _limit_cpu(limit)
        _send(replies, {"event": "started"})
        _send(replies, {"event": "done", "result": _run(grader, task, limit, memory_mib)})


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
