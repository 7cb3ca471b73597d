"""Runs one program in this process and reports the results on a channel, line by line.

The protocol, on this side: read the job (a line of JSON), set the limits, run the program, send `ran`, read the tests
(a line of JSON, which arrives only now), and send a line for each: the plain text of a value, the token of a statement
that raised no exception, or `!REASON`. If the program itself fails, the only line is `!REASON`. A program that runs as
a script reports through its standard output and exit status instead; script.py describes how it runs.

A program can replace functions by name: `builtins.exec`, `json.loads`, `os.write`. So the functions that are used after
the program are looked up before it runs and kept in local variables, and this package is removed from `sys.modules`
(`script.prepare_interpreter`).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from megatron_prism.verification.sandbox.inside import script
from megatron_prism.verification.sandbox.inside.comparison import comparison
from megatron_prism.verification.sandbox.inside.harness_names import lent_to, mentioned_in
from megatron_prism.verification.sandbox.inside.plain_text import plain

# Sent instead of a value that has no plain text. No expected value has this text.
NO_VALUE = "?"
_COMPARE = comparison(sys.modules)
_DECODE = json.JSONDecoder().decode


def serve(channel: int, names: Mapping[str, str], protect: Callable[[], None] = lambda: None) -> NoReturn:
    """Run the job that is read from `channel`, and exit.

    Args:
        channel: descriptor of a stream socket.
        names: what `harness_names.lendable` returned.
        protect: called after the limits are set, before the program.
    """
    leave = os._exit
    status = 1
    host = _Channel(channel)
    try:
        job = host.read()
        for name, text in job.get("files", {}).items():
            with open(name, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
                file.write(text)
        status = _run(job, host, protect, names)
    except BaseException as problem:
        status = 1
        host.send(f"!{_reason(problem)}")
    finally:
        leave(status)


class _Channel:
    """Reads lines from the host and sends lines to it."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self._read, self._write, self._decode = os.read, os.write, _DECODE

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


def _run(job: dict[str, Any], host: _Channel, protect: Callable[[], None], names: Mapping[str, str]) -> int:
    """The exit status: 0, unless a script exits with another."""
    read, send, answer, reason, collect = host.read, host.send, _answer, _reason, script.collect
    compare = _COMPARE
    # "__main__" only for a script: otherwise an `if __name__ == "__main__"` block would run and wait for input.
    module = script.module("__main__" if job["script"] else "solution", job.get("arguments", []))
    # A program that starts with a byte order mark is a program; compile() accepts one only in bytes.
    source = job["program"].removeprefix("\ufeff")
    code = compile(source, module.__file__ or "", "exec", dont_inherit=True)
    script.write_source(module, source)
    mentioned = mentioned_in(code)
    lent = lent_to(mentioned, names)
    script.seed_chance(mentioned)
    vars(module).update(lent)
    for name, limit in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    protect()
    script.set_recursion_limit(job.get("recursion"))
    if job["script"]:
        loaded = [code, module]
        del code, module
        return script.run(loaded, any_exit=job.get("any_exit", False))
    namespace = vars(module)
    exec(code, namespace)
    send("ran")
    functions = {name for name, value in lent.items() if not isinstance(value, types.ModuleType)}
    hidden = {name: lent[name] for name in functions}
    for step in read():
        try:
            line = answer(step, namespace, hidden, compare)
        except BaseException as problem:
            line = f"!{reason(problem)}"
            if line == "!memory":
                # The traceback keeps what the test used, and the next test may need it.
                del problem
                collect()
        send(line)
    return 0


def _answer(
    step: dict[str, Any],
    namespace: dict[str, Any],
    hidden: dict[str, Any],
    compare: Any,
    compile: Any = compile,
    exec: Any = exec,
    eval: Any = eval,
    plain: Any = plain,
) -> str:
    source = step.get("function") or step.get("expression") or step["statement"]
    if "function" in step and "." not in source and hasattr(namespace.get("Solution"), source):
        # As on LeetCode, a function may be a method of the class Solution, and each test has a new object.
        source = f"Solution().{source}"
    if hidden:
        _refuse_hidden(source, namespace, hidden)
    if "token" in step:
        namespace[step["compare"]] = compare
        exec(compile(source, "test.py", "exec", dont_inherit=True), namespace)
        return str(step["token"])
    if "function" in step:
        function = eval(compile(source, "test.py", "eval", dont_inherit=True), namespace)
        value = function(*step["arguments"])
    else:
        value = eval(compile(source, "test.py", "eval", dont_inherit=True), namespace)
    try:
        return str(plain(value, tuples_are_lists="function" in step))
    except TypeError:
        return NO_VALUE


def _refuse_hidden(source: str, namespace: dict[str, Any], hidden: dict[str, Any]) -> None:
    """Raise NameError if a test mentions a lent name that the program has not defined itself."""
    # Imported here because it would slow down every fork, and few programs use lent names.
    import ast

    for node in ast.walk(ast.parse(source)):
        name = getattr(node, "id", None)
        if name in hidden and namespace.get(name) is hidden[name]:
            raise NameError(f"name '{name}' is not defined")


def _reason(problem: BaseException) -> str:
    if isinstance(problem, AssertionError):
        return "assertion"
    if isinstance(problem, MemoryError):
        return "memory"
    if isinstance(problem, SystemExit):
        return "exit"
    return f"exception: {type(problem).__name__}"
