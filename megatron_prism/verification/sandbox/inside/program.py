"""Runs one program in this process and reports the results on a channel, line by line.

The protocol, on this side: read the job (a line of JSON), set the limits, run the program, send `ran`, read the tests
(a line of JSON, which arrives only now), and send a line for each: the plain text of a value, or the token of a
statement that raised no exception. After a failure the last line is `!REASON`. A program that runs as a script reports
through its standard output and exit status instead.

A program can replace functions by name: `builtins.exec`, `json.loads`, `os.write`. So the functions that are used after
the program are looked up before it runs and kept in local variables, and this module is removed from `sys.modules`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

from megatron_prism.verification.sandbox.inside.plain_text import plain

# Sent instead of a value that has no plain text. No expected value has this text.
NO_VALUE = "?"


def serve(channel: int, protect: Callable[[], None] = lambda: None) -> NoReturn:
    """Run the job that is read from `channel`, and exit without running exit handlers.

    Args:
        channel: descriptor of a stream socket.
        protect: called after the limits are set, before the program.
    """
    leave = os._exit
    status = 1
    host = _Channel(channel)
    for name in [name for name in sys.modules if name.startswith("megatron_prism")]:
        del sys.modules[name]
    try:
        job = host.read()
        for name, limit in job["limits"].items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        protect()
        status = _run(job, host)
    except BaseException as problem:
        status = 1
        host.send(f"!{_reason(problem)}")
    finally:
        leave(status)


class _Channel:
    """Reads lines from the host and sends lines to it."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self._read, self._write, self._decode = os.read, os.write, json.JSONDecoder().decode

    def read(self) -> Any:
        """The next message: a line of JSON. The host sends one line and then waits."""
        line = bytearray()
        while not line.endswith(b"\n"):
            data = self._read(self.channel, 1 << 16)
            if not data:
                raise EOFError
            line += data
        return self._decode(line.decode("ascii"))

    def send(self, line: str) -> None:
        data = line.encode("ascii", "replace") + b"\n"
        while data:
            data = data[self._write(self.channel, data) :]


def _run(job: dict[str, Any], host: _Channel) -> int:
    """The exit status: 0, unless a script exits with another."""
    read, send, answer = host.read, host.send, _answer
    # "__main__" only for a script: otherwise an `if __name__ == "__main__"` block would run and wait for input.
    name = "__main__" if job["script"] else "solution"
    module = types.ModuleType(name)
    # dataclasses, pickle and typing look up the module of a class.
    sys.modules[name] = module
    try:
        exec(compile(job["program"], "solution.py", "exec"), module.__dict__)
    except SystemExit as left:
        if not job["script"] or left.code not in (None, 0):
            raise
    if job["script"]:
        sys.stdout.flush()
        return 0
    send("ran")
    for step in read():
        send(answer(step, module.__dict__))
    return 0


def _answer(
    step: dict[str, Any],
    namespace: dict[str, Any],
    compile: Any = compile,
    exec: Any = exec,
    eval: Any = eval,
) -> str:
    if "token" in step:
        exec(compile(step["statement"], "test.py", "exec"), namespace)
        return str(step["token"])
    if "function" in step:
        function = eval(compile(step["function"], "test.py", "eval"), namespace)
        value = function(*step["arguments"])
    else:
        value = eval(compile(step["expression"], "test.py", "eval"), namespace)
    try:
        return plain(value, tuples_are_lists="function" in step)
    except TypeError:
        return NO_VALUE


def _reason(problem: BaseException) -> str:
    if isinstance(problem, AssertionError):
        return "assertion"
    if isinstance(problem, MemoryError):
        return "memory"
    if isinstance(problem, SystemExit):
        return "exit"
    return f"exception: {type(problem).__name__}"
