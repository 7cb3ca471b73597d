"""The first process of a sandbox: a warm interpreter that forks a child for each program and cleans up after it.

It is process 1 of its namespace, so a program can neither signal it (the kernel drops signals to process 1 from inside)
nor outlive it, and it becomes the parent of orphans. It knows no secrets: programs and tests go directly from the host
to the child. After each program it kills every other process of the namespace and empties /tmp; if that fails, it
reports so, and the host replaces the sandbox.

The host sends N, with three descriptors, to start program N, and -N to end it; the reply to both is "N STATUS CLEAN".
It is not JSON because every page of memory that this process writes to between two forks is copied.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys

from megatron_prism.verification.sandbox.inside.harness_names import lendable
from megatron_prism.verification.sandbox.inside.program import serve
from megatron_prism.verification.sandbox.inside.script import prepare_interpreter

NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
WRITABLE = "/tmp"
# Limit on the processes and threads of one program. The control group, if there is one, has a separate limit.
PROCESSES = 64
# The modules that answers import most often are imported once here, so that programs get them without cost. More
# modules would slow down every fork, which copies all mappings; an extension module has five. `random` alone costs 0.15
# ms, because it seeds itself after every fork, and `dataclasses`, with `inspect` and `ast`, 0.05 ms.
PRELOADED = (
    *("bisect", "collections", "contextlib", "copy", "enum", "functools", "heapq", "itertools", "math"),
    *("operator", "re", "string", "time", "typing"),
)
# signal.signal without the conversion to enumerations, which costs more than the call.
_SET_HANDLER = importlib.import_module("_signal").signal


def main(control_number: int, uid: int) -> None:
    """Serve programs until the host closes the control socket."""
    _drop_privileges(uid)
    sys.path.remove(os.environ.pop("PYTHONPATH"))
    os.environ.pop("PWD", None)
    for name in PRELOADED:
        importlib.import_module(name)
    prepare_interpreter()
    names = _lendable_names()
    # Standard output is the null device, which this process may not be allowed to open itself.
    silence = os.dup(1)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=control_number) as control:
        control.send(b"0 0 1")
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, 4096, 3)
            if not data:
                return
            number = int(data)
            if number < 0:
                # The program had already ended when the host's request to end it arrived.
                continue
            child = os.fork()
            if child == 0:
                _become_program(control, descriptors, silence, names)
            for descriptor in descriptors:
                os.close(descriptor)
            _await_end(control, child, number)
            status = _kill_all(child)
            control.send(b"%d %d %d" % (number, status, _clean()))


def _lendable_names() -> dict[str, str]:
    """`lendable`, computed in another process: the modules that it imports would slow down every fork."""
    result, far_end = os.pipe()
    child = os.fork()
    if child == 0:
        with open(far_end, "w", encoding="ascii") as file:
            json.dump(lendable(), file)
        os._exit(0)
    os.close(far_end)
    with open(result, encoding="ascii") as file:
        names: dict[str, str] = json.load(file)
    os.waitpid(child, 0)
    return names


def _become_program(
    control: socket.socket, descriptors: list[int], silence: int, names: dict[str, str]
) -> None:
    try:
        control.close()
        os.setsid()
        channel, stdin, stdout = descriptors
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        # Each program has its own standard error, which keeps nothing. The one of this process is a file.
        os.dup2(silence, 2)
        _SET_HANDLER(signal.SIGINT, signal.default_int_handler)
        for descriptor in range(3, max(*descriptors, silence) + 1):
            if descriptor != channel:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
        serve(channel, names)
    finally:
        os._exit(1)


def _await_end(control: socket.socket, child: int, number: int) -> None:
    """Return when the child has ended or the host requests its end; exit when the host has ended."""
    ended = os.pidfd_open(child)
    # Not select(), which does not accept descriptors above 1023: the host may have had that many open.
    waiting = select.poll()
    for descriptor in (ended, control.fileno()):
        waiting.register(descriptor, select.POLLIN)
    try:
        while True:
            if control.fileno() not in dict(waiting.poll()):
                return
            data = control.recv(4096)
            if not data:
                os._exit(0)
            if int(data) == -number:
                return
    finally:
        os.close(ended)


def _kill_all(child: int) -> int:
    """Kill and reap every process except this one. Returns the exit code of `child` (negative: a signal)."""
    status = 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    while True:
        try:
            pid, code = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == child:
            status = os.waitstatus_to_exitcode(code)


def _clean() -> bool:
    """Empty the only writable folder. Returns whether that worked."""
    try:
        if os.stat(WRITABLE).st_mode & 0o7777 != 0o1777:
            # If the host is not root, the program owns the folder and may have changed its mode.
            os.chmod(WRITABLE, 0o1777)
        folders_left = False
        for entry in os.scandir(WRITABLE):
            if entry.is_dir(follow_symlinks=False):
                folders_left = True
            else:
                os.unlink(entry.path)
        if not folders_left:
            return True
        for folder, folders, files in os.walk(WRITABLE, topdown=False):
            for name in files:
                os.unlink(os.path.join(folder, name))
            for name in folders:
                path = os.path.join(folder, name)
                os.unlink(path) if os.path.islink(path) else os.rmdir(path)
        return not os.listdir(WRITABLE)
    except (OSError, RecursionError):
        return False


def _drop_privileges(uid: int) -> None:
    """Become an ordinary user permanently, which debuggers and signals cannot reach, and die when the host dies."""
    if os.getuid() == 0:
        os.setgroups([])
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        except OSError:
            # The host runs in a user namespace that maps only a few ids.
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN):
            # Process 1 receives a signal from inside only if it has a handler, and Python has one for Ctrl-C.
            signal.signal(number, signal.SIG_DFL)
    # The grading worker that started this process limits its own CPU time; the limit must not apply here.
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except ImportError:
        # The interpreter was built without libffi. /proc is still missing, and ptrace is still refused.
        return
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Changing the user cleared the setting that bwrap had made.
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
