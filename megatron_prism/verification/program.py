"""Runs one program and its tests, then reports: the process that code.py starts and kills.

Executed by path in a bare interpreter, so it imports only the standard library. The job comes as JSON on
standard input; the verdict goes out on what was standard output: the token when every test passed, else a
word on what went wrong. The program's own output goes nowhere.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

# Audit events (docs.python.org/3/library/audit_events.html) that no answer needs and that could do harm.
# fmt: off
FORBIDDEN = frozenset({
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen",
    "pty.spawn", "os.kill", "os.killpg", "ctypes.dlopen", "socket.__new__", "resource.setrlimit",
    "shutil.rmtree", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.chown",
    "os.link", "os.symlink",
})
# fmt: on


def main() -> None:
    """Apply the limits, run program and tests, write the verdict, and leave without running exit handlers."""
    # The lowest free number, whatever the parent has open: a program that writes to its descriptors always
    # meets it, here as in the tests.
    verdict_fd = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    job = json.loads(sys.stdin.buffer.read())
    token = job.pop("token")
    for name, limit in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    write, leave = os.write, os._exit
    _install_guard(os.getcwd())
    verdict = _run(job["program"], job["tests"])
    write(verdict_fd, (token if verdict is None else verdict).encode("ascii", "replace"))
    leave(0)


def _run(program: str, tests: list[str]) -> str | None:
    """None when the program ran and every test passed, else the reason."""
    # Not "__main__": a solution's `if __name__ == "__main__"` block would wait for input.
    namespace: dict[str, Any] = {"__name__": "solution"}
    try:
        exec(compile(program, "solution.py", "exec"), namespace)
        for test in tests:
            exec(compile(test, "test.py", "exec"), namespace)
    except AssertionError:
        return "assertion"
    except MemoryError:
        return "memory"
    except SystemExit:
        return "exit"
    except BaseException as problem:
        return f"exception: {type(problem).__name__}"
    return None


def _install_guard(folder: str) -> None:
    """Refuse processes, sockets, signals, deletions, and writing files outside the working directory."""
    forbidden = FORBIDDEN
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    realpath, join = os.path.realpath, os.path.join
    inside = join(realpath(folder), "")

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in forbidden:
            raise PermissionError(f"{event} is not allowed here")
        if event == "open" and arguments[2] & writing and isinstance(arguments[0], str | bytes):
            path = os.fsdecode(arguments[0])
            if not realpath(path).startswith(inside) and path != os.devnull:
                raise PermissionError(f"writing {path} is not allowed here")

    sys.addaudithook(guard)


if __name__ == "__main__":
    main()
