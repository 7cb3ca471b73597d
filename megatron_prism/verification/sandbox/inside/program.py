"""Runs one program in this process and says on a channel how it went, line by line.

The conversation, seen from here: read the job (a line of JSON), set the limits, run the program, say `ran`, read
the tests (a line of JSON; they arrive only now), then answer each: the plain text of a value, or the token of
a statement that raised nothing. `!REASON` says what went wrong and is the last line. A program run as a
script speaks through its standard output and its exit status instead.

A program can replace what it finds under a name: `builtins.exec`, `json.loads`, `os.write`. So what follows it
here is taken before it runs and kept in local variables, and this module cannot be found by name.
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

# Said in place of a value that has no plain text; no expected value reads like this.
NO_VALUE = "?"


def serve(channel: int, protect: Callable[[], None] = lambda: None) -> NoReturn:
    """Run the job that comes on `channel`, and leave without running exit handlers.

    Args:
        channel: descriptor of a stream socket.
        protect: called after the limits are set, before the program.
    """
    leave = os._exit
    status = 1
    talk = _Talk(channel)
    for name in [name for name in sys.modules if name.startswith("megatron_prism")]:
        del sys.modules[name]
    try:
        job = talk.read()
        for name, limit in job["limits"].items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        protect()
        status = _run(job, talk)
    except BaseException as problem:
        status = 1
        talk.say(f"!{_reason(problem)}")
    finally:
        leave(status)


class _Talk:
    """Lines to and from the host."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self._read, self._write, self._decode = os.read, os.write, json.JSONDecoder().decode

    def read(self) -> Any:
        """The next message: a line of JSON. The other side sends one line and then waits."""
        line = bytearray()
        while not line.endswith(b"\n"):
            data = self._read(self.channel, 1 << 16)
            if not data:
                raise EOFError
            line += data
        return self._decode(line.decode("ascii"))

    def say(self, line: str) -> None:
        data = line.encode("ascii", "replace") + b"\n"
        while data:
            data = data[self._write(self.channel, data) :]


def _run(job: dict[str, Any], talk: _Talk) -> int:
    """Exit status: 0, or what a script left with."""
    read, say, answer = talk.read, talk.say, _answer
    # Not "__main__" unless it is run as a script: its `if __name__ == "__main__"` block would wait for input.
    name = "__main__" if job["script"] else "solution"
    module = types.ModuleType(name)
    # dataclasses, pickle and typing look a class's module up.
    sys.modules[name] = module
    try:
        exec(compile(job["program"], "solution.py", "exec"), module.__dict__)
    except SystemExit as left:
        if not job["script"] or left.code not in (None, 0):
            raise
    if job["script"]:
        sys.stdout.flush()
        return 0
    say("ran")
    for step in read():
        say(answer(step, module.__dict__))
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
