"""The weak mode: each program runs in a separate process with limits. It stops accidents and is not isolation.

An endless loop, excessive memory, a fork, a full disk, a write outside the working directory or `sys.exit(0)` is
stopped and counts as a failure. Malicious code can still do harm: C code bypasses Python's audit hooks, and a program
can read every file that this user can read. Do not run code that you do not trust.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache

from megatron_prism.platform.source_tree import ROOT
from megatron_prism.verification.sandbox.inside.harness_names import lendable

# The environment variable with the result of `lendable`: each interpreter would import all those modules for it.
NAMES = "PRISM_LENDABLE_NAMES"
ENTRY = "megatron_prism.verification.sandbox.inside.audit_hooks"


@lru_cache(maxsize=1)
def _names() -> str:
    return json.dumps(lendable())


class WeakRunner:
    """Starts a new interpreter for each program, in a temporary folder."""

    def open(self) -> None:
        """Does nothing: no process is kept between programs."""

    def start(self, channel: int, stdin: int, stdout: int) -> _Process:
        """See `judge.Runner`."""
        return _Process(channel, stdin, stdout)


class _Process:
    def __init__(self, channel: int, stdin: int, stdout: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="prism-code-", ignore_cleanup_errors=True)
        folder = self._folder.name
        # The process holds the writing end and never writes to it; the kernel closes it when the process ends.
        self.ended, held = os.pipe()
        self._process = subprocess.Popen(
            # Not -I, which would ignore PYTHONHASHSEED: the same program must always get the same verdict.
            [sys.executable, "-P", "-s", "-S", "-B", "-m", ENTRY, str(channel)],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            pass_fds=(channel, held),
            cwd=folder,
            env={
                **{"HOME": folder, "TMPDIR": folder, "PYTHONPATH": str(ROOT)},
                **{"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", NAMES: _names()},
            },
            start_new_session=True,
        )
        os.close(held)

    def finish(self) -> int:
        """Kill the process group, remove the folder and return the exit code."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        os.close(self.ended)
        self._folder.cleanup()
        return status
