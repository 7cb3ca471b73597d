"""SIGTERM and SIGUSR1 ask a process to stop: a loop that can save its state asks for them, other work ends at once.

Slurm sends SIGTERM before it kills a job, and with `--signal=USR1@300` another signal five minutes before the time
limit.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from megatron_prism.errors import Requeue

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class _State:
    """What this process was sent, and who wants to know."""

    received = ""
    installed = False
    polls = 0
    forward: list[Callable[[], None]] = []  # noqa: RUF012


def received() -> str:
    """The name of the signal that asked this process to stop; empty if there was none."""
    return _State.received


@contextmanager
def polled() -> Iterator[None]:
    """In this block the caller asks for `received` regularly, so a first signal does not end the process."""
    with handled():
        _State.polls += 1
        try:
            yield
        finally:
            _State.polls -= 1


@contextmanager
def forwarded(to: Callable[[], None]) -> Iterator[None]:
    """In this block a first signal calls `to`, which must return soon, and does not end the process."""
    _State.forward.append(to)
    try:
        yield
    finally:
        _State.forward.remove(to)


@contextmanager
def handled(*, worker: bool = False, repeated: bool = False) -> Iterator[None]:
    """Handle the signals in this block; inside another such block, and outside the main thread, this does nothing.

    A first signal is kept for `received` and forwarded. If nobody wants to know, it raises `Requeue` in the main
    thread. A second one ends the process at once, as if there were no handler.

    Args:
        worker: only its launcher ends this process. The manager of a job may send a worker what the launcher sends,
            too, so signals are only kept, however many there are.
        repeated: the manager of a job sends the signal to a process and to its parents, which pass it on, so a second
            one means no more than the first.
    """
    if _State.installed or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        first = not _State.received
        if not first and not worker and not repeated:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        _State.received = signal.Signals(number).name
        if first and not worker:
            for to in _State.forward:
                to()
            if not _State.forward and not _State.polls:
                raise Requeue(f"stopped by {_State.received}; the same command goes on with what is finished")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    _State.installed = True
    try:
        yield
    finally:
        _State.installed, _State.received = False, ""
        for number, handler in before.items():
            signal.signal(number, handler)
