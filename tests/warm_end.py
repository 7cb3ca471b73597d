"""The exit handler of the fork server of `warm.py`: it ends its children and their descendants."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal

SERVER = os.getpid()


def end() -> None:
    if os.getpid() != SERVER:
        return
    with open(f"/proc/{SERVER}/task/{SERVER}/children") as children:
        for pid in map(int, children.read().split()):
            # Each child has its own process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    # There is nothing else to clean up, and libraries of torch would report frozen objects as leaks.
    os._exit(0)


atexit.register(end)
