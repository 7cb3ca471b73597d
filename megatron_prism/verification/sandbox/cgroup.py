"""A control group of its own for each sandbox: one bound on memory and one on processes for all it starts.

Limits of a process (setrlimit) do not add up: sixty forks have sixty times the memory. Version 1 and 2 of the
kernel's interface are served, where this process may write there; elsewhere a sandbox runs without.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

MOUNTS = Path("/sys/fs/cgroup")
PREFIX = "prism-"
# The kernel lets go of a group a moment after its last process is gone.
RELEASE_SECONDS = 2.0
_counter = itertools.count()


class ControlGroup:
    """Folders under `mounts`, made on construction and gone after `remove`.

    Args:
        memory_bytes: for all processes together, files in memory included; there is no swap beyond it.
        processes: processes and threads together.
        mounts: where the kernel's control groups are mounted.

    Raises:
        OSError: where they cannot be made.
    """

    def __init__(self, memory_bytes: int, processes: int, mounts: Path = MOUNTS) -> None:
        sweep(mounts)
        name = f"{PREFIX}{os.getpid()}-{next(_counter)}"
        self.folders: list[Path] = []
        self._descriptor = -1
        try:
            if (mounts / "cgroup.controllers").exists():
                self.version = 2
                folder = self._make(_delegated(mounts) / name)
                self._events = folder / "memory.events"
                (folder / "memory.max").write_text(str(memory_bytes))
                with contextlib.suppress(OSError):
                    (folder / "memory.swap.max").write_text("0")
                (folder / "pids.max").write_text(str(processes))
            else:
                self.version = 1
                memory, pids = self._make(mounts / "memory" / name), self._make(mounts / "pids" / name)
                self._events = memory / "memory.oom_control"
                (memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
                with contextlib.suppress(OSError):
                    (memory / "memory.memsw.limit_in_bytes").write_text(str(memory_bytes))
                (pids / "pids.max").write_text(str(processes))
        except BaseException:
            self.remove()
            raise

    @property
    def entrances(self) -> list[str]:
        """Files a process writes its id to in order to enter."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def memory_kills(self) -> int:
        """How often the kernel has killed a process in here for want of memory."""
        with contextlib.suppress(OSError, ValueError):
            if self._descriptor < 0:
                # Read after every program: kept open.
                self._descriptor = os.open(self._events, os.O_RDONLY | os.O_CLOEXEC)
            for line in os.pread(self._descriptor, 4096, 0).splitlines():
                key, _, value = line.partition(b" ")
                if key == b"oom_kill":
                    return int(value)
        return 0

    def remove(self) -> None:
        """Remove the folders, once the last process is gone."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        while self.folders:
            _remove(self.folders.pop())

    def _make(self, folder: Path) -> Path:
        folder.mkdir()
        self.folders.append(folder)
        return folder


def sweep(mounts: Path = MOUNTS, owner: int | None = None) -> None:
    """Remove what sandboxes left whose host process was killed. A group with a process in it stays.

    Args:
        owner: only this process's, and wait for its sandbox to end.
    """
    name = f"{PREFIX}{'*' if owner is None else owner}-*"
    for folder in (*mounts.glob(name), *mounts.glob(f"*/{name}")):
        process = folder.name.removeprefix(PREFIX).partition("-")[0]
        if process.isdigit() and not Path("/proc", process).exists():
            _remove(folder, RELEASE_SECONDS if owner is not None else 0.0)


def _remove(folder: Path, seconds: float = RELEASE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > end:
                return
            time.sleep(0.01)


def _delegated(mounts: Path) -> Path:
    """The group (version 2) below which a group with both controllers can be made: this process's, or the
    top."""
    own = Path("/proc/self/cgroup").read_text().partition("::")[2].strip().lstrip("/")
    for folder in dict.fromkeys((mounts / own, mounts)):
        with contextlib.suppress(OSError):
            control = folder / "cgroup.subtree_control"
            if not {"memory", "pids"} <= set(control.read_text().split()):
                # Refused where the group has processes of its own.
                control.write_text("+memory +pids")
            return folder
    raise PermissionError(f"{mounts}: no control group in which the memory and pids controllers can be used")
