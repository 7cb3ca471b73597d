"""A Slurm cluster of two nodes on this machine, made for one test session: Debian's daemons in a temporary folder.

It touches no file and no daemon of the system, so several of them can run at once. The nodes n1 and n2 are namespaces
with a host name, a network address and processes of their own; they share all files except `private`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configuration import ACCOUNT, CLUSTER, GPUS, Node, gres_conf, slurm_conf, slurmdbd_conf
from daemons import Daemon, on_machine

from megatron_prism.platform.ports import free_port

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "sbatch",
    "mariadbd",
    "mariadb-install-db",
    "unshare",
    "setpriv",
)
SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POLL_SECONDS = 0.1


def missing() -> str:
    """Why there can be no cluster here, or an empty string."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]
    if absent:
        return f"needs {', '.join(absent)}: run `make slurm`, which installs Debian's packages as root"
    if os.getuid() != 0:
        return "needs root, for daemons in namespaces"
    allowed = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--uts", "true"], capture_output=True
    )
    return "" if allowed.returncode == 0 else f"may not make namespaces: {allowed.stderr.decode().strip()}"


class Cluster:
    """A running cluster; `stop` ends all its processes and removes its folder.

    Attributes:
        environment: what Slurm's commands need to reach it, besides PATH.
        private: a folder that each node has for itself.
    """

    def __init__(self) -> None:
        # A short name: the path of a socket has at most 107 characters.
        self.root = Path(tempfile.mkdtemp(prefix="prism-slurm-", dir="/tmp"))
        self.private = self.root / "private"
        self.environment = {"SLURM_CONF": str(self.root / "slurm.conf")}
        self.nodes = {name: Node(name, f"127.0.0.1{name[1:]}", free_port()) for name in ("n1", "n2")}
        self._daemons: dict[str, Daemon] = {}
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        for folder in (
            "munge",
            "mysql",
            "state",
            "log",
            "private",
            *(f"spool/{name}" for name in self.nodes),
        ):
            (self.root / folder).mkdir(parents=True)
        self._write_configuration()
        self._start_munge()
        self._start_accounting()
        self._daemon("slurmctld", "slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        for name in self.nodes:
            self._start_slurmd(name)
        self._daemons["slurmctld"].wait_until(lambda: all(self.state(name) == "idle" for name in self.nodes))

    def _write_configuration(self) -> None:
        host = socket.gethostname().split(".")[0]
        ports = {"slurmctld": free_port(), "slurmdbd": free_port()}
        addresses = "".join(f"{node.address} {node.name}\n" for node in self.nodes.values())
        (self.root / "hosts").write_text(f"127.0.0.1 localhost {host}\n{addresses}")
        (self.root / "slurm.conf").write_text(slurm_conf(self.root, host, self.nodes, ports))
        (self.root / "gres.conf").write_text(gres_conf(self.root))
        for number in range(GPUS):
            (self.root / f"gpu{number}").touch()
        (self.root / "slurmdbd.conf").write_text(slurmdbd_conf(self.root, ports))
        (self.root / "slurmdbd.conf").chmod(0o600)

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        files = {
            "key-file": "key",
            "log-file": "log",
            "pid-file": "pid",
            "seed-file": "seed",
            "socket": "socket",
        }
        options = [f"--{option}={folder / file}" for option, file in files.items()]
        daemon = self._daemon("munged", "munged", "--foreground", "--force", "--num-threads=4", *options)
        daemon.wait_until(lambda: self._succeeds("munge", "-n", "-S", folder / "socket"))

    def _start_accounting(self) -> None:
        folder, server = self.root / "mysql", self.root / "mariadb"
        common = ("--no-defaults", "--user=root", f"--datadir={folder}")
        self.run("mariadb-install-db", *common, "--skip-test-db", "--auth-root-authentication-method=socket")
        # Nothing here must survive a crash, so nothing waits for the disk.
        quick = (
            "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-flush-method=nosync",
        )
        daemon = self._daemon(
            "mariadbd", "mariadbd", *common, f"--socket={server}", "--skip-networking", *quick
        )
        daemon.wait_until(lambda: self._succeeds("mariadb-admin", "--no-defaults", "-S", server, "ping"))
        daemon = self._daemon("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(server))
        daemon.wait_until(lambda: self._succeeds("sacctmgr", "-n", "show", "cluster"))
        self.run("sacctmgr", "-i", "add", "cluster", CLUSTER)
        self.run("sacctmgr", "-i", "add", "account", ACCOUNT, f"cluster={CLUSTER}")
        self.run("sacctmgr", "-i", "add", "user", "root", f"account={ACCOUNT}")

    def _start_slurmd(self, name: str) -> None:
        command = ("slurmd", "-D", "-f", self.environment["SLURM_CONF"], "-N", name)
        self._daemon(name, *on_machine(name, self.root / "hosts", self.private, command))

    def _daemon(self, name: str, *command: object, **environment: str) -> Daemon:
        made = Daemon(
            *command, log=self.root / "log" / f"{name}.out", environment=self._environment(environment)
        )
        self._daemons[name] = made
        return made

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        return os.environ | {"PATH": SEARCHED} | self.environment | more

    def _succeeds(self, *command: object) -> bool:
        done = subprocess.run(
            list(map(str, command)), env=self._environment({}), capture_output=True, timeout=60
        )
        return done.returncode == 0

    def stop(self) -> None:
        """End all processes and remove all files."""
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------- commands

    def run(self, *command: object, stdin: str | None = None) -> str:
        """What a command prints; it fails if the command does."""
        done = subprocess.run(
            list(map(str, command)),
            env=self._environment({}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *options: object) -> str:
        """Submit a batch script with the right account; return the job's number."""
        common = (f"--account={ACCOUNT}", f"--output={self.root}/%j.out")
        return self.run("sbatch", "--parsable", *common, *options, stdin=script)

    def job(self, number: str) -> dict[str, str]:
        """The fields that the controller has of a job: JobState, Reason, Restarts, NodeList and so on."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, node: str) -> str:
        """The state of a node; empty while the controller does not answer."""
        asked = ["sinfo", "-h", "-n", node, "-p", "batch", "-o", "%T"]
        return subprocess.run(asked, env=self._environment({}), capture_output=True, text=True).stdout.strip()

    def wait_for(self, what: Callable[[], Any], seconds: float = 60, about: str = "") -> Any:
        """Wait until `what()` is true, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, (
                f"not after {seconds} s: {about}\n{self.run('squeue', '--long')}"
            )
            time.sleep(POLL_SECONDS)
        return found

    def wait_for_state(self, number: str, *states: str, seconds: float = 60) -> dict[str, str]:
        """Wait until a job is in one of the states, and return its fields."""
        return self.wait_for(
            lambda: (job := self.job(number))["JobState"] in states and job,
            seconds,
            f"job {number} in {states}",
        )

    def start_now(self, number: str) -> None:
        """Let a requeued job start in a few seconds: Slurm makes it wait for two minutes, from when it has ended.

        A node refuses a job that starts in the second in which its last attempt has ended ("credential revoked").
        """
        asked = 0.0

        def started() -> bool:
            nonlocal asked
            state = self.job(number)["JobState"]
            idle = all(self.state(node) == "idle" for node in self.nodes)
            if state == "PENDING" and idle and time.monotonic() - asked > 6:
                asked = time.monotonic()
                self._succeeds("scontrol", "update", f"jobid={number}", "starttime=now+3seconds")
            return state in ("RUNNING", "COMPLETED", "FAILED")

        self.wait_for(started, about=f"job {number} starts")

    # ---------------------------------------------------------------------------------------------------- nodes

    def lose(self, node: str) -> None:
        """A power failure: all processes of the node are gone at once, and Slurm is not told."""
        self._daemons.pop(node).kill()

    def repair(self, node: str) -> None:
        """The node boots, if it was lost."""
        if node not in self._daemons:
            self._start_slurmd(node)
        self.wait_for(
            lambda: self.state(node) in ("idle", "mixed", "allocated"), about=f"node {node} is back"
        )
