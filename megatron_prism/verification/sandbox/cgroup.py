"""A control group for each sandbox, which limits the memory and the number of all its processes together.

Limits per process (setrlimit) are not enough: sixty forks may use sixty times the memory. Versions 1 and 2 of the
kernel's interface are supported, if this process may write to them; otherwise a sandbox has no control group.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

MOUNTS = Path("/sys/fs/cgroup")
PREFIX = "prism-"
# The kernel releases a group shortly after its last process has ended.
RELEASE_SECONDS = 2.0
_counter = itertools.count()


class ControlGroup:
    """Folders under `mounts`, created by the constructor and deleted by `remove`.

    Args:
        memory_bytes: limit for all processes together, including files in memory; swap is not available.
        processes: limit on the number of processes and threads together.
        mounts: where the kernel's control groups are mounted.

    Raises:
        OSError: if the groups cannot be created.
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
        """The files to which a process writes its id to join the group."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def memory_kills(self) -> int:
        """How often the kernel has killed a process of this group because memory ran out."""
        with contextlib.suppress(OSError, ValueError):
            if self._descriptor < 0:
                # Kept open, because it is read after every program.
                self._descriptor = os.open(self._events, os.O_RDONLY | os.O_CLOEXEC)
            for line in os.pread(self._descriptor, 4096, 0).splitlines():
                key, _, value = line.partition(b" ")
                if key == b"oom_kill":
                    return int(value)
        return 0

    def remove(self) -> None:
        """Remove the folders, after the last process has ended."""
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
    """Remove the groups of sandboxes whose host process was killed. A group that still has a process stays.

    Args:
        owner: remove only the groups of this process id, and wait for its sandbox to end.
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
    """The group (version 2) in which a group with both controllers can be created: this process's, or the root."""
    own = Path("/proc/self/cgroup").read_text().partition("::")[2].strip().lstrip("/")
    for folder in dict.fromkeys((mounts / own, mounts)):
        with contextlib.suppress(OSError):
            control = folder / "cgroup.subtree_control"
            if not {"memory", "pids"} <= set(control.read_text().split()):
                # The kernel refuses this for a group that contains processes itself.
                control.write_text("+memory +pids")
            return folder
    raise PermissionError(f"{mounts}: no control group in which the memory and pids controllers can be used")
