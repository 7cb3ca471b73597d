"""The weak mode: a program in a process of its own with limits. It bounds accidents and isolates nothing.

A runaway loop, a memory hog, a fork, a full disk, a write outside the working directory or `sys.exit(0)` is
stopped and counts as a failure. Code that sets out to do harm still can: Python's audit hooks can be gone
around through C, and everything this user may read can be read. Do not run what you have reason to fear.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

from megatron_prism.platform.source_tree import ROOT

ENTRY = "megatron_prism.verification.sandbox.inside.audit_hooks"


class WeakRunner:
    """Starts a fresh interpreter for each program, in a folder that goes when it ends."""

    def open(self) -> None:
        """Nothing is kept ready."""

    def start(self, channel: int, stdin: int, stdout: int) -> _Process:
        """As `judge.Runner`."""
        return _Process(channel, stdin, stdout)


class _Process:
    def __init__(self, channel: int, stdin: int, stdout: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="prism-code-", ignore_cleanup_errors=True)
        folder = self._folder.name
        # The process holds the writing end and never writes: it is closed when the process ends.
        self.ended, held = os.pipe()
        self._process = subprocess.Popen(
            # -I would also ignore PYTHONHASHSEED, and the same program must get the same verdict every time.
            [sys.executable, "-P", "-s", "-S", "-B", "-m", ENTRY, str(channel)],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            pass_fds=(channel, held),
            cwd=folder,
            env={
                **{"HOME": folder, "TMPDIR": folder, "PYTHONPATH": str(ROOT)},
                **{"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            },
            start_new_session=True,
        )
        os.close(held)

    def finish(self) -> int:
        """Kill the process group, remove the folder; the exit code."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        os.close(self.ended)
        self._folder.cleanup()
        return status
