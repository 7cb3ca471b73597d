"""Worker processes that torchrun started end when the launcher of their stage is gone, or another worker has failed.

Without the first, they would go on writing into a folder that the next run of the same command takes for its own.
Without the second, a rank that waits for a failed one in a collective would be waited for until torchrun kills it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

POLL_SECONDS = 1.0
# The variable in which a launcher tells its workers its process number.
LAUNCHER = "PRISM_LAUNCHER"


def end_with(launcher: int, failed: Callable[[], bool]) -> None:
    """Let this process and torchrun, its parent, end when process `launcher` of this machine does.

    Args:
        failed: whether another worker has failed for good; then only this process ends.
    """
    arguments = (launcher, os.getppid(), failed)
    threading.Thread(target=_watch, args=arguments, daemon=True, name="launcher watch").start()


def _watch(launcher: int, parent: int, failed: Callable[[], bool]) -> None:
    while _runs(launcher):
        time.sleep(POLL_SECONDS)
        if failed():
            os._exit(1)
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
