"""Processes that a test run leaves behind: they carry its mark in their environment and outlive what started them."""

from __future__ import annotations

import os
import time
import uuid

import psutil

MARK = "PRISM_TEST_RUN"
# Servers of the standard library that end with the process which started them.
SERVERS = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")


def mark_this_run() -> None:
    """Mark this process and all that it starts. Test workers of pytest-xdist inherit the mark of their controller."""
    os.environ.setdefault(MARK, uuid.uuid4().hex)


def leftovers(patience: float = 10.0) -> list[psutil.Process]:
    """The marked processes that do not end by themselves within `patience` seconds."""
    end = time.monotonic() + patience
    while (found := _marked()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def describe(process: psutil.Process) -> str:
    with process.oneshot():
        try:
            return f"{process.pid} (parent {process.ppid()}): {' '.join(process.cmdline())[:200]}"
        except psutil.Error:
            return str(process.pid)


def _marked() -> list[psutil.Process]:
    here = psutil.Process()
    spared = {here.pid, *(parent.pid for parent in here.parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid in spared or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK) == os.environ[MARK] and not _is_server(process, here):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _is_server(process: psutil.Process, here: psutil.Process) -> bool:
    """Whether this is a server of the running test process, or one that it forked for another purpose."""
    return process.ppid() == here.pid and any(name in " ".join(process.cmdline()) for name in SERVERS)
