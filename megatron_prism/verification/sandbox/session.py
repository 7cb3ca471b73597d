"""One process of a program, seen from the host: send it the job, read its replies and its output, and end it.

It is the same for both modes of isolation: a `Runner` starts a process that speaks the protocol of `inside/program.py`,
and ends it on request. The program's replies are never parsed, only compared with the expected lines. The time limit is
enforced here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

PASSED = "correct"
CRASHED = "crashed"
TIMEOUT = "timeout"
MEMORY = "memory"
# The host has heard all that it needs.
FINISHED = "finished"
# A program may print or reply this much more than expected.
LARGEST_OUTPUT_BYTES = 1 << 20
_REASON = re.compile(r"!(memory|assertion|exit|exception: \w{1,100})")
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


class Stop(Exception):
    """The process is not needed any longer.

    Attributes:
        reason: why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def reason_of(line: str) -> str | None:
    """The reason that a program's process reports in `line`; None if it is a reply."""
    if not line.startswith("!"):
        return None
    reported = _REASON.fullmatch(line)
    return reported.group(1) if reported else CRASHED


class Session:
    """One process of a program.

    Args:
        job: what inside/program.py reads first.
        deadline: time.monotonic() at which the process is ended; may be moved while it runs.
        on_line: called with each line that the process sends; may raise `Stop`.
        stdin: its standard input. None: it has no input, and its output is not read.
        largest_output: bytes that it may print.
        largest_line: characters of the longest line that is expected from it.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        deadline: float,
        on_line: Callable[[str], None],
        *,
        stdin: bytes | None = None,
        largest_output: int = LARGEST_OUTPUT_BYTES,
        largest_line: int = 0,
    ) -> None:
        self.job, self.deadline, self.on_line, self.stdin = job, deadline, on_line, stdin
        self.largest_output = largest_output
        self.largest_line = LARGEST_OUTPUT_BYTES + largest_line
        self.printed = bytearray()
        self.received = bytearray()
        # During a call of `on_line`: whether the process has sent more after this line.
        self.more_follows = False
        self._host: socket.socket | None = None

    def run(self, runner: Runner) -> str | int:
        """Run the process to its end. Returns the reason for ending it, or its exit code (negative: a signal)."""
        with ExitStack() as for_host:
            self._host, child = socket.socketpair()
            for_host.enter_context(self._host)
            with child, ExitStack() as for_program:
                stdin, printed, stdout = _standard_files(self.stdin, for_program, for_host)
                running = runner.start(child.fileno(), stdin, stdout)
            try:
                self._talk(printed, running)
            except Stop as stop:
                ended = running.finish()
                return MEMORY if ended == MEMORY and stop.reason == CRASHED else stop.reason
            except BaseException:
                running.finish()
                raise
            ended = running.finish()
            try:
                self._read_the_rest(printed)
            except Stop as stop:
                return stop.reason
            return ended

    def send(self, message: Any) -> None:
        """Send one line of JSON, in ASCII, so that lone surrogates arrive unchanged."""
        assert self._host is not None
        data = json.dumps(message).encode("ascii") + b"\n"
        try:
            with contextlib.suppress(BlockingIOError):
                # Most messages fit into the socket's buffer: no time limit is needed.
                data = data[self._host.send(data, socket.MSG_DONTWAIT) :]
            if data:
                self._host.settimeout(max(0.001, self.deadline - time.monotonic()))
                self._host.sendall(data)
                self._host.settimeout(None)
        except TimeoutError:
            raise Stop(TIMEOUT) from None
        except (BrokenPipeError, ConnectionResetError):
            # The program has ended or closed the channel: its earlier replies and its exit status decide.
            pass

    def _talk(self, printed: int | None, running: Running) -> None:
        """Exchange messages until the program has ended; raises Stop as soon as the verdict is known."""
        assert self._host is not None
        self.send(self.job)
        host = self._host.fileno()
        # Not selectors.DefaultSelector, which makes and closes a descriptor each time.
        waiting = select.poll()
        for descriptor in (running.ended, host, *(() if printed is None else (printed,))):
            waiting.register(descriptor, select.POLLIN)
        while True:
            left = self.deadline - time.monotonic()
            ready = {descriptor for descriptor, _ in waiting.poll(left * 1000)} if left > 0 else set()
            if not ready:
                raise Stop(TIMEOUT)
            if host in ready and not self._receive():
                waiting.unregister(host)
            if printed in ready and not self._collect(printed):
                waiting.unregister(printed)
            if running.ended in ready:
                return

    def _read_the_rest(self, printed: int | None) -> None:
        """Read what the process sent and printed before it ended."""
        assert self._host is not None
        self._host.setblocking(False)
        while self._receive():
            pass
        if printed is not None:
            os.set_blocking(printed, False)
            while self._collect(printed):
                pass

    def _receive(self) -> bool:
        """Read from the channel and pass on complete lines; False at the end of the channel."""
        assert self._host is not None
        try:
            data = self._host.recv(_CHUNK)
        except (BlockingIOError, ConnectionResetError):
            return False
        self.received += data
        if b"\n" in data:
            *lines, rest = bytes(self.received).split(b"\n")
            self.received = bytearray(rest)
            for number, line in enumerate(lines, start=1):
                self.more_follows = number < len(lines) or bool(rest)
                self.on_line(line.decode("ascii", "replace"))
        if len(self.received) > self.largest_line:
            raise Stop("output")
        return bool(data)

    def _collect(self, printed: int) -> bool:
        try:
            data = os.read(printed, _CHUNK)
        except BlockingIOError:
            return False
        self.printed += data
        if len(self.printed) > self.largest_output:
            raise Stop("output")
        return bool(data)


def run_script(
    runner: Runner, job: Mapping[str, Any], stdin: bytes, *, deadline: float, expected: int = 0
) -> bytes | str:
    """What a script printed, or the reason why it failed. `expected` is the number of characters expected."""

    def on_line(line: str) -> None:
        # A script sends nothing but the reason of its failure.
        raise Stop(reason_of(line) or CRASHED)

    limit = LARGEST_OUTPUT_BYTES + 2 * expected
    session = Session(job, deadline, on_line, stdin=stdin, largest_output=limit)
    ended = session.run(runner)
    if isinstance(ended, str):
        return ended
    if ended != 0:
        return "exit" if ended > 0 else CRASHED
    return bytes(session.printed)


def _standard_files(
    stdin: bytes | None, for_program: ExitStack, for_host: ExitStack
) -> tuple[int, int | None, int]:
    """Descriptors: the program's standard input, the end from which its output is read, and its standard output.

    Those in `for_program` are closed once the program has them, those in `for_host` at the end."""
    if stdin is None:
        nothing = os.open(os.devnull, os.O_RDWR)
        for_program.callback(os.close, nothing)
        return nothing, None, nothing
    # A file in memory that can no longer be written: a program cannot store anything in it.
    file = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    for_program.callback(os.close, file)
    view = memoryview(stdin)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    printed, stdout = os.pipe()
    for_program.callback(os.close, stdout)
    for_host.callback(os.close, printed)
    return file, printed, stdout
