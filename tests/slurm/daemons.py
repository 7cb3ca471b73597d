"""A daemon of the cluster: it ends with the process that started it, and what it started ends with it.

Each daemon is the first process of its own PID namespace. If it is killed, the kernel kills all others in the namespace
at once, as a power failure of a node does.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.02


class DaemonFailed(Exception):
    """A daemon did not come up; the message has the end of its output."""


class Daemon:
    """A running daemon of the cluster, with its output in the file `log`."""

    def __init__(self, *command: object, log: Path, environment: Mapping[str, str]) -> None:
        self.command, self.log = [str(part) for part in command], log
        namespace = ("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--uts")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *namespace, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until `ready()`.

        Raises:
            DaemonFailed: if the daemon ended before, or time is up.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DaemonFailed(f"{' '.join(self.command)}: {self.log.read_text()[-2000:]}")
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """Kill it, and everything in its namespace."""
        self._process.kill()
        self._process.wait()


def on_machine(name: str, hosts: Path, private: Path, command: Sequence[object]) -> list[str]:
    """`command` on a machine with the host name `name`, whose /etc/hosts is the file `hosts`.

    Args:
        private: a folder that is empty on this machine, and that no other machine sees.
    """
    # The shell stays the first process of the namespace: it collects processes whose parents have ended.
    script = 'hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs tmpfs "$3" && shift 3 && "$@"; exit $?'
    return ["sh", "-c", script, "sh", name, str(hosts), str(private), *map(str, command)]
