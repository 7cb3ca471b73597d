"""The host's side of the protocol with one running program: send it the tests and compare its replies.

It is the same for both modes of isolation: a `Runner` starts a process that speaks the protocol of `inside/program.py`,
and ends it on request. The program's replies are never parsed, only compared with the expected lines. The time limit is
enforced here.
"""

from __future__ import annotations

import json
import math
import os
import re
import selectors
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from megatron_prism.verification.sandbox.code_tests import Case, CodeTests, Step, normal_output

PASSED = "correct"
CRASHED = "crashed"
TIMEOUT = "timeout"
_REASON = re.compile(r"!(memory|assertion|exit|exception: \w{1,100})")
LARGEST_FILE_BYTES = 1 << 20
OPEN_FILES = 64
# A program may print or reply this much more than expected.
LARGEST_OUTPUT_BYTES = 1 << 20
_CHUNK = 1 << 16


class Running(Protocol):
    """One started program."""

    @property
    def ended(self) -> int:
        """A descriptor that is readable once the program's main process has ended."""

    def finish(self) -> str | int:
        """End the program and everything it started. Returns its exit code (negative: a signal), or "memory" if the
        kernel killed it for its memory."""


class Runner(Protocol):
    """Starts programs in one of the two modes."""

    def open(self) -> None:
        """Start what the first program would otherwise have to wait for."""

    def start(self, channel: int, stdin: int, stdout: int) -> Running:
        """Start a process with these descriptors (which it copies) that serves the job on `channel`."""


class _Stop(Exception):
    """The verdict is known."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def judge(runner: Runner, program: str, tests: CodeTests, *, timeout_seconds: float, memory_mib: int) -> str:
    """The verdict on `program`: "correct" if it passed every test within the time limit, else the reason why not."""
    deadline = time.monotonic() + timeout_seconds
    job = {
        "program": program,
        "script": bool(tests.cases),
        "limits": {
            "RLIMIT_CPU": math.ceil(timeout_seconds) + 1,
            "RLIMIT_AS": memory_mib << 20,
            "RLIMIT_FSIZE": LARGEST_FILE_BYTES,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_CORE": 0,
        },
    }
    for case in tests.cases:
        reason = _Session(runner, job, deadline, case=case).verdict()
        if reason != PASSED:
            return reason
    if tests.steps:
        return _Session(runner, job, deadline, steps=tests.steps).verdict()
    return PASSED


class _Session:
    """One process of the program: it is given `steps`, or run as a script on one `case`."""

    def __init__(
        self,
        runner: Runner,
        job: Mapping[str, Any],
        deadline: float,
        *,
        steps: list[Step] | None = None,
        case: Case | None = None,
    ) -> None:
        self.runner, self.job, self.deadline = runner, job, deadline
        self.steps, self.case = steps or [], case
        self.expected = ["ran", *(step.expected for step in self.steps)]
        self.received = bytearray()
        self.line = 0
        self.printed = bytearray()

    def verdict(self) -> str:
        with ExitStack() as for_host:
            host, child = socket.socketpair()
            for_host.enter_context(host)
            with child, ExitStack() as for_program:
                stdin, printed, stdout = _standard_files(self.case, for_program, for_host)
                running = self.runner.start(child.fileno(), stdin, stdout)
            try:
                self._talk(host, printed, running)
            except _Stop as stop:
                ended = running.finish()
                return "memory" if ended == "memory" and stop.reason == CRASHED else stop.reason
            except BaseException:
                running.finish()
                raise
            return self._after_the_end(running.finish(), host, printed)

    def _talk(self, host: socket.socket, printed: int | None, running: Running) -> None:
        """Exchange messages until the program has ended; raises _Stop as soon as the verdict is known."""
        self._send(host, self.job)
        with selectors.DefaultSelector() as selector:
            selector.register(running.ended, selectors.EVENT_READ)
            selector.register(host, selectors.EVENT_READ)
            if printed is not None:
                selector.register(printed, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(max(0.0, self.deadline - time.monotonic()))}
                if not ready:
                    raise _Stop(TIMEOUT)
                if host.fileno() in ready and not self._receive(host):
                    selector.unregister(host)
                if printed in ready and not self._collect(printed):
                    selector.unregister(printed)
                if running.ended in ready:
                    return

    def _after_the_end(self, ended: str | int, host: socket.socket, printed: int | None) -> str:
        """The verdict on a program that has ended. Its last output is read first."""
        try:
            host.setblocking(False)
            while self._receive(host):
                pass
            if self.case is None or printed is None:
                return "memory" if ended == "memory" else CRASHED
            os.set_blocking(printed, False)
            while self._collect(printed):
                pass
        except _Stop as stop:
            return stop.reason
        if ended == "memory":
            return "memory"
        if ended != 0:
            return "exit" if isinstance(ended, int) and ended > 0 else CRASHED
        text = bytes(self.printed).decode("utf-8", "replace")
        return PASSED if normal_output(text) == self.case.output else "wrong"

    def _receive(self, host: socket.socket) -> bool:
        """Read from the channel and compare complete lines; False at the end of the channel."""
        try:
            data = host.recv(_CHUNK)
        except (BlockingIOError, ConnectionResetError):
            return False
        self.received += data
        while (end := self.received.find(b"\n")) >= 0:
            line = self.received[:end].decode("ascii", "replace")
            del self.received[: end + 1]
            self._compare(host, line)
        if len(self.received) > LARGEST_OUTPUT_BYTES + max(map(len, self.expected)):
            raise _Stop("output")
        return bool(data)

    def _compare(self, host: socket.socket, line: str) -> None:
        if line.startswith("!"):
            reason = _REASON.fullmatch(line)
            raise _Stop(reason.group(1) if reason else CRASHED)
        if self.case is not None:
            # A script sends no other line.
            raise _Stop(CRASHED)
        if line != self.expected[self.line]:
            raise _Stop(self.steps[self.line - 1].failure if self.line else CRASHED)
        self.line += 1
        if self.line == 1:
            self._send(host, [step.request for step in self.steps])
        if self.line == len(self.expected):
            raise _Stop(PASSED)

    def _collect(self, printed: int) -> bool:
        assert self.case is not None
        try:
            data = os.read(printed, _CHUNK)
        except BlockingIOError:
            return False
        self.printed += data
        if len(self.printed) > LARGEST_OUTPUT_BYTES + 2 * len(self.case.output):
            raise _Stop("output")
        return bool(data)

    def _send(self, host: socket.socket, message: Any) -> None:
        """Send one line of JSON, in ASCII, so that lone surrogates arrive unchanged."""
        host.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            host.sendall(json.dumps(message).encode("ascii") + b"\n")
        except TimeoutError:
            raise _Stop(TIMEOUT) from None
        except (BrokenPipeError, ConnectionResetError):
            # The program has ended or closed the channel: its earlier replies and its exit status decide.
            pass
        finally:
            host.settimeout(None)


def _standard_files(
    case: Case | None, for_program: ExitStack, for_host: ExitStack
) -> tuple[int, int | None, int]:
    """Descriptors: the program's standard input, the end from which its output is read, and its standard output.

    Those in `for_program` are closed once the program has them, those in `for_host` at the end."""
    if case is None:
        nothing = os.open(os.devnull, os.O_RDWR)
        for_program.callback(os.close, nothing)
        return nothing, None, nothing
    with tempfile.NamedTemporaryFile(prefix="prism-input-") as file:
        file.write(case.input)
        file.flush()
        # Read-only and of a file without a name, so that a program cannot store anything in it.
        stdin = os.open(file.name, os.O_RDONLY)
    for_program.callback(os.close, stdin)
    printed, stdout = os.pipe()
    for_program.callback(os.close, stdout)
    for_host.callback(os.close, printed)
    return stdin, printed, stdout
