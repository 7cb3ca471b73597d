"""Child processes that start with everything imported: each test worker has one server, which imports and then forks.

Importing torch, Megatron and transformers takes five CPU seconds, more than most tests in child processes run. The
server is the fork server of the standard library. It has one thread, so forking is safe. It ends when the test worker
ends, and so does every child.

Otherwise a child is a separate process: it can be killed, it has an exit code and output, and its changes do not affect
other processes. It cannot show how a real process starts (warnings and time of imports, arguments of the interpreter);
tests of that start a real process.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PR_SET_PDEATHSIG = 1
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["warm_imports", "warm_end"])


class Child:
    """`target(*arguments)` in a child process; its standard output and error go to files."""

    def __init__(
        self,
        target: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="prism-warm-")
        self.process: ForkServerProcess = _context.Process(
            target=_begin,
            args=(
                Path(self._folder.name),
                dict(os.environ) | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
                cwd or Path.cwd(),
                target,
                arguments,
            ),
        )
        _start_server()
        self.process.start()

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative if a signal killed it."""
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return (Path(self._folder.name) / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (Path(self._folder.name) / "stderr").read_text()

    def wait(self, timeout: float) -> int:
        """Wait for its exit code; after the timeout it is killed and the test fails."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {timeout} s; its stderr:\n{self.stderr[-4000:]}")
        return self.process.exitcode

    def wait_for_descendants(self, timeout: float) -> None:
        """After its end, wait for its descendants; after the timeout they are killed and the test fails."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.process.pid, 0)
                time.sleep(0.02)
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"{timeout} s after its end, descendants still run")

    def kill(self) -> None:
        """Kill it, if it still runs, and its descendants."""
        # It may not have its own process group yet.
        self.process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()


def python(
    *arguments: object,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` (`-m MODULE ...` or `FILE ...`) in a child."""
    child = Child(run_program, *map(str, arguments), cwd=cwd, environment=environment)
    try:
        code = child.wait(timeout)
    finally:
        child.kill()
    return subprocess.CompletedProcess(arguments, code, child.stdout, child.stderr)


def run_program(*arguments: str) -> None:
    """Run a module or file as a program, in this process."""
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")


def ranks(target: Callable[..., Any], *arguments: Any, world: int, timeout: float = 300) -> None:
    """Run `target(*arguments)` on `world` processes, with torchrun's environment variables and a gloo process group.

    If a rank fails, the test fails with the end of its stderr, and the other ranks, which would wait, are killed.
    """
    with tempfile.TemporaryDirectory(prefix="prism-ranks-") as folder:
        children = [
            Child(
                _rank,
                Path(folder) / "port",
                target,
                arguments,
                environment={
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    # Ranks connect when they first communicate; most of Megatron's two dozen groups never do.
                    "TORCH_GLOO_LAZY_INIT": "1",
                },
            )
            for rank in range(world)
        ]
        try:
            _wait(children, time.monotonic() + timeout)
        finally:
            for child in children:
                child.kill()


def _wait(children: Sequence[Child], deadline: float) -> None:
    running = {child.process.sentinel: child for child in children}
    while running:
        ended = connection.wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        assert ended, "ranks still running at the timeout:\n" + "\n".join(
            child.stderr[-3000:] for child in children
        )
        for sentinel in ended:
            child = running.pop(sentinel)
            code = child.wait(10)
            assert code == 0, f"rank {children.index(child)} ended with {code}:\n{child.stderr[-9000:]}"


def _rank(port_file: Path, target: Callable[..., Any], arguments: Sequence[Any]) -> None:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = timedelta(minutes=3)
    # Rank 0 binds a free port and writes it to the file. A port chosen in advance might be taken by then.
    if rank == 0:
        store = dist.TCPStore("localhost", 0, world, True, timeout, wait_for_workers=False)
        port_file.with_suffix(".partial").write_text(str(store.port))
        port_file.with_suffix(".partial").rename(port_file)
    else:
        while not port_file.exists():
            time.sleep(0.002)
        store = dist.TCPStore("localhost", int(port_file.read_text()), world, False, timeout)
    # One rendezvous for all sessions of the target: a second one on the same store would find the keys of the first.
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
    target(*arguments)
    dist.destroy_process_group()


def _start_server() -> None:
    """Start the server if none runs, with the modules of the tests on its path."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [before])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _begin(
    folder: Path, environment: dict[str, str], cwd: Path, target: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    """The start of a child: it ends with the server, and gets its own process group and output files."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The server ends when the last holder of this pipe does: children must not keep it alive.
    os.close(forkserver._forkserver._forkserver_alive_fd)
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ |= environment
    os.chdir(cwd)
    target(*arguments)
