"""Worker processes that torchrun started end when the launcher of their stage is gone, even if it was killed.

Otherwise they would go on writing into a folder that the next run of the same command takes for its own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

POLL_SECONDS = 1.0
# The variable in which a launcher tells its workers its process number.
LAUNCHER = "PRISM_LAUNCHER"


def end_with(launcher: int) -> None:
    """Let this process and torchrun, its parent, end when process `launcher` of this machine does."""
    threading.Thread(target=_watch, args=(launcher, os.getppid()), daemon=True, name="launcher watch").start()


def _watch(launcher: int, parent: int) -> None:
    while _runs(launcher):
        time.sleep(POLL_SECONDS)
    with suppress(ProcessLookupError):
        # Otherwise torchrun would take this process's end for a failure and wait for the others.
        if os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
    os._exit(1)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
