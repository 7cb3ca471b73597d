"""What the fork server of `warm.py` does last: it ends its children, and what they started."""

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
            # Each has a process group of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    # Nothing else to tidy up; torch's libraries would report what is frozen as leaks.
    os._exit(0)


atexit.register(end)
