"""Grading a program: run the last fenced block with the problem's assert tests in a process of its own.

This bounds accidents; it is NOT a sandbox against hostile code. A runaway loop, a memory hog, a fork, a full
disk, a write outside the working directory or `sys.exit(0)` is stopped and counts as a failure. Code that
sets out to cheat still can: program and verdict share one interpreter, so it may search the interpreter's
memory for the success token, define objects that equal everything, or go around Python's audit hooks through
C. Files of this user can be read. Do not grade what you have reason to fear without a container around it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_prism.verification.extract import final_part

PASSED = "correct"
_FENCE = re.compile(
    r"^[ \t]*```(?:python|py|python3)?[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE
)
_FAILURE = re.compile(r"timeout|memory|assertion|exit|exception: \w+")
_RUNNER = Path(__file__).with_name("program.py")
LARGEST_FILE_BYTES = 1 << 20
OPEN_FILES = 64
LONGEST_VERDICT = 200


def extract_code(completion: str) -> str | None:
    """The last ```python fenced block (a fence without a language counts), or None."""
    blocks = _FENCE.findall(final_part(completion))
    return blocks[-1] if blocks else None


def run_tests(program: str, tests: Sequence[str], timeout_seconds: float = 5.0, memory_mib: int = 512) -> str:
    """Run `program`, then each of `tests`, in a fresh process.

    Args:
        program: Python source; only the standard library can be imported.
        tests: statements run in the program's namespace; one that raises is a failure.
        timeout_seconds: wall time for everything; the process group is killed at its end.
        memory_mib: address space in MiB.

    Returns:
        "correct", "timeout", "memory", "assertion", "exit" (the program left by itself), "exception: NAME",
        or "crashed" (killed by a signal or gone without a verdict).

    Raises:
        ValueError: without tests, for then any program would pass.
    """
    if not tests:
        raise ValueError("no tests: any program would pass")
    token = secrets.token_hex(16)
    limits = {
        "RLIMIT_CPU": math.ceil(timeout_seconds) + 1,
        "RLIMIT_AS": memory_mib << 20,
        "RLIMIT_FSIZE": LARGEST_FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
    }
    job = {"program": program, "tests": list(tests), "token": token, "limits": limits}
    with tempfile.TemporaryDirectory(prefix="prism-code-", ignore_cleanup_errors=True) as folder:
        verdict = _run(json.dumps(job).encode("ascii"), Path(folder), timeout_seconds)
    if verdict == token:
        return PASSED
    # Whatever is no verdict of the runner's was written by the program itself.
    return verdict if _FAILURE.fullmatch(verdict) else "crashed"


def _run(job: bytes, folder: Path, timeout_seconds: float) -> str:
    """Start the runner, wait for its verdict, and kill its whole process group, whatever happened."""
    # -I would also ignore PYTHONHASHSEED, and the same program must get the same verdict every time.
    command = [sys.executable, "-P", "-s", "-S", "-B", str(_RUNNER)]
    environment = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
    job_file = folder / "job.json"
    job_file.write_bytes(job)
    verdict_read, verdict_write = os.pipe()
    try:
        with open(job_file, "rb") as handle:
            job_file.unlink()
            process = subprocess.Popen(
                command,
                stdin=handle,
                stdout=verdict_write,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
    finally:
        os.close(verdict_write)
    try:
        return _read_verdict(verdict_read, time.monotonic() + timeout_seconds)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(verdict_read)


def _read_verdict(source: int, deadline: float) -> str:
    """What the runner says before it ends; 'timeout' if it does not end in time."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while len(said) <= LONGEST_VERDICT:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return "timeout"
            data = os.read(source, LONGEST_VERDICT + 1)
            if not data:
                break
            said += data
    return said.decode("ascii", "replace")[:LONGEST_VERDICT]
