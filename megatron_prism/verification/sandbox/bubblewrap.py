"""The strong mode: one long-lived sandbox with a warm interpreter that forks a child for each program.

Bubblewrap creates new namespaces for the sandbox (processes, network, mounts, System V queues, host name; also users if
this process is not root). Its root directory contains the interpreter, the standard library, their shared libraries,
four devices and an empty /tmp in memory, and is read-only except for /tmp: there is no /proc, shell, home or
checkpoint. The environment is empty. Programs run as a separate user without capabilities and cannot regain any; a
seccomp filter (system_calls.py) refuses calls that they do not need. A control group, if one can be created
(cgroup.py), and limits per process bound memory and processes; the host bounds time and output.

What remains possible:
- A program shares the kernel with the host: a kernel vulnerability that the filter does not cover is a way out.
- Tests that are statements other than `assert EXPRESSION == LITERAL` run inside the program's interpreter. A program
  that searches for the grader there (frames) and makes it accept every statement is found out by a statement that must
  fail; one that also tells that statement from the tests can forge the verdict. The verdicts of functions, scripts
  and comparisons with a literal cannot be forged.
- Programs run one after the other in one sandbox. Files and processes are removed between them, and what else would
  stay is refused. Counters that only grow (process ids, inodes of /tmp) and the processor's caches are not reset, so
  a program can count what earlier ones did.
- Without a control group a program may use PROCESSES times its memory limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
from functools import lru_cache
from pathlib import Path

from megatron_prism.verification.sandbox import inside
from megatron_prism.verification.sandbox.cgroup import ControlGroup
from megatron_prism.verification.sandbox.inside import zygote
from megatron_prism.verification.sandbox.interpreter_files import interpreter_files
from megatron_prism.verification.sandbox.system_calls import seccomp_filter

INSIDE = Path(inside.__path__[0])
PACKAGE_IN_SANDBOX = "/prism"
DEVICES = ("null", "zero", "random", "urandom")
TEMPORARY_BYTES = 64 << 20
# For the interpreter, bubblewrap and the files in memory.
OWN_MEMORY_BYTES = (64 << 20) + TEMPORARY_BYTES
# The user id of a sandbox is FIRST_USER plus the id of its host process. No other process has it, so the kernel's
# limits per user apply to one sandbox.
FIRST_USER = 2_000_000_000
# A sandbox starts in a tenth of a second; the limit is for a busy machine.
START_SECONDS = 60.0
# Cleaning up takes milliseconds; a sandbox that takes longer than this is replaced.
CLEAN_SECONDS = 5.0
# A sandbox is replaced after this many programs, as a precaution.
PROGRAMS_PER_SANDBOX = 1000
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 97; shift; done; shift; exec "$@"'


class SandboxError(Exception):
    """The sandbox does not start; the message is the output of bubblewrap or the interpreter."""


class Sandbox:
    """Runs programs one after the other; implements `judge.Runner`. Use it as a context manager.

    Args:
        memory_mib: memory limit of one program, for all its processes together.
    """

    def __init__(self, memory_mib: int) -> None:
        self.memory_mib = memory_mib
        self.group: ControlGroup | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._first_process = 0
        self._programs = 0

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Start the sandbox if it is not running.

        Raises:
            SandboxError: if it does not start.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def start(self, channel: int, stdin: int, stdout: int) -> _Program:
        """See `judge.Runner`; opens the sandbox if it is not running."""
        for attempt in (1, 2):
            self.open()
            assert self._control is not None
            self._programs += 1
            number = self._programs
            try:
                socket.send_fds(self._control, [b"%d" % number], [channel, stdin, stdout])
            except OSError:
                # The sandbox has died since the last program; nothing is lost.
                self.close()
                if attempt == 2:
                    raise SandboxError("the sandbox exits immediately after it starts") from None
            else:
                return _Program(self, self._control, number)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Kill all its processes and remove its control group. The sandbox opens again when it is used again."""
        if self._process is not None:
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    # When process 1 of the namespace dies, the kernel kills all others, and bubblewrap ends.
                    os.kill(self._first_process or self._process.pid, signal.SIGKILL)
                try:
                    self._process.wait(CLEAN_SECONDS)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self._process.wait()
        if self._control is not None:
            self._control.close()
        if self.group is not None:
            self.group.remove()
        self._process = self._control = self.group = None
        self._first_process = self._programs = 0

    def _open(self) -> None:
        program = shutil.which("bwrap")
        if program is None:
            raise SandboxError("bwrap is not on PATH")
        # If no control group can be created, only the limits per process apply.
        with contextlib.suppress(OSError):
            self.group = ControlGroup((self.memory_mib << 20) + OWN_MEMORY_BYTES, 2 * zygote.PROCESSES)
        host, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = host
        errors = os.memfd_create("errors")
        information, information_end = os.pipe()
        rules = os.memfd_create("rules")
        try:
            os.write(rules, seccomp_filter())
            os.lseek(rules, 0, os.SEEK_SET)
            entrances = self.group.entrances if self.group is not None else []
            self._process = subprocess.Popen(
                [
                    *("/bin/sh", "-c", _ENTER, "sh", *entrances, "--", program),
                    *_arguments(rules, information_end, far_end.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(rules, information_end, far_end.fileno()),
                env={},
                start_new_session=True,
            )
            os.close(information_end)
            information_end = -1
            far_end.close()
            ready = _receive(host, START_SECONDS)
            if ready is None:
                self._process.kill()
                self._process.wait()
                text = os.pread(errors, 4096, 0).decode("utf-8", "replace").strip()
                raise SandboxError(
                    text.splitlines()[-1] if text else "bubblewrap exited without an error message"
                )
            self._first_process = json.loads(os.read(information, 4096))["child-pid"]
        finally:
            far_end.close()
            for descriptor in (errors, information, information_end, rules):
                if descriptor >= 0:
                    os.close(descriptor)


class _Program:
    """One program in the sandbox."""

    def __init__(self, sandbox: Sandbox, control: socket.socket, number: int) -> None:
        self.ended = control.fileno()
        self._sandbox, self._control, self._number = sandbox, control, number
        self._kills = sandbox.group.memory_kills() if sandbox.group else 0

    def finish(self) -> str | int:
        """End the program. The sandbox is closed if it does not report a clean end or has run enough programs."""
        with contextlib.suppress(OSError):
            self._control.send(b"-%d" % self._number)
        report = _receive(self._control, CLEAN_SECONDS)
        group = self._sandbox.group
        out_of_memory = group is not None and group.memory_kills() > self._kills
        if report is not None and report[0] != self._number:
            report = None
        clean = report is not None and bool(report[2])
        if not clean or out_of_memory or self._number >= PROGRAMS_PER_SANDBOX:
            self._sandbox.close()
        if out_of_memory:
            return "memory"
        return -int(signal.SIGKILL) if report is None else report[1]


@lru_cache(maxsize=1)
def bubblewrap_version() -> str | None:
    """The version that `bwrap --version` prints; None if bubblewrap is not installed."""
    try:
        done = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().rpartition(" ")[2]


def _receive(control: socket.socket, seconds: float) -> list[int] | None:
    """The next message of the sandbox's first process: number of the program, exit status, and whether the sandbox is
    clean. None if it has ended or sends nothing in time."""
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    if not waiting.poll(seconds * 1000):
        return None
    try:
        data = control.recv(4096)
    except OSError:
        return None
    return [int(part) for part in data.split()] if data else None


def _arguments(rules: int, information: int, control: int) -> list[str]:
    """Bubblewrap's arguments (--size needs version 0.7 or newer), followed by the command of the interpreter."""
    files = interpreter_files()
    root = os.getuid() == 0
    shown = [*files.folders, *files.files, files.python]
    # Created here because only the owner may read the folders that bubblewrap creates itself on the way to a mount.
    parents = sorted({"/dev", *(str(parent) for path in shown for parent in Path(path).parents)} - {"/"})
    return [
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        # Root needs no user namespace: it changes to an unused user id. Other users need one.
        *(() if root else ("--unshare-user", "--uid", str(zygote.NOBODY), "--gid", str(zygote.NOBODY))),
        *("--cap-drop", "ALL"),
        *(("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID") if root else ()),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "sandbox"),
        *("--seccomp", str(rules), "--info-fd", str(information)),
        *(argument for path in parents for argument in ("--perms", "0755", "--dir", path)),
        *(argument for path in shown for argument in ("--ro-bind", path, path)),
        *(argument for path in files.hidden for argument in ("--perms", "0755", "--tmpfs", path)),
        *(argument for path in files.hidden for argument in ("--remount-ro", path)),
        *("--ro-bind", str(INSIDE), f"{PACKAGE_IN_SANDBOX}/{inside.__name__.replace('.', '/')}"),
        *(argument for name in DEVICES for argument in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")),
        *("--perms", "1777", "--size", str(TEMPORARY_BYTES), "--tmpfs", zygote.WRITABLE),
        *("--remount-ro", "/", "--chdir", zygote.WRITABLE, "--clearenv"),
        *("--setenv", "HOME", zygote.WRITABLE, "--setenv", "TMPDIR", zygote.WRITABLE),
        *("--setenv", "PYTHONPATH", PACKAGE_IN_SANDBOX, "--setenv", "PYTHONUTF8", "1"),
        # Not -I, which would ignore PYTHONHASHSEED: the same program must always get the same verdict.
        *("--setenv", "PYTHONHASHSEED", "0"),
        *("--", files.python, "-P", "-s", "-S", "-B", "-m", zygote.__name__),
        *(str(control), str(FIRST_USER + os.getpid())),
    ]
