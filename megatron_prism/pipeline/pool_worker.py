"""The worker process of a pool (see pool.py): receive a stage, run it, send back how it ended, repeat."""

from __future__ import annotations

import logging
import os
import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from megatron_prism.errors import PrismError, Requeue
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform import stop_signals

PR_SET_PDEATHSIG = 1
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class Task:
    """One rank of a stage, with what torchrun would put into the environment."""

    name: str
    stage: Stage
    inputs: dict[str, Path]
    out: Path
    rank: int
    world_size: int
    port: int


@dataclass(frozen=True)
class LogLine:
    """A line of a stage's log."""

    name: str
    text: str


@dataclass(frozen=True)
class Done:
    """A rank finished; the metrics of rank 0 are kept."""

    metrics: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A rank failed: a PrismError or OSError as it is, anything else as a `StageBug` with its traceback."""

    problem: BaseException


class StageBug(Exception):
    """An error in a worker that is not a PrismError; its text is the worker's traceback."""


class _Forward(logging.Handler):
    """Sends log lines of the running stage to the parent, which writes to the terminal."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection, self.name_of_stage = connection, ""

    def emit(self, record: logging.LogRecord) -> None:
        self.connection.send(LogLine(self.name_of_stage, record.getMessage()))


def work(connection: Connection) -> None:
    """Run tasks from `connection` until it is closed."""
    # Ctrl-C is sent to every process of the terminal; only the parent handles it, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    # Two workers with two threads each would compete for two cores. With one thread the numbers are also the same on
    # every machine.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Only the parent draws on the terminal; here Rich must treat it as a file.
    os.environ["TTY_COMPATIBLE"] = "0"
    from megatron_prism.platform.console import setup_logging

    forward = _Forward(connection)
    setup_logging(handler=forward)
    with stop_signals.handled(worker=True):
        while True:
            try:
                task: Task = connection.recv()
            except (EOFError, OSError):
                return
            forward.name_of_stage = task.name
            try:
                connection.send(_run(task))
            except (BrokenPipeError, ConnectionResetError):
                return


def _run(task: Task) -> Done | Failed:
    ranks = {
        "RANK": task.rank,
        "LOCAL_RANK": task.rank,
        "WORLD_SIZE": task.world_size,
        "LOCAL_WORLD_SIZE": task.world_size,
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": task.port,
    }
    for key, value in ranks.items():
        os.environ.pop(key, None)
        if task.world_size > 1:
            os.environ[key] = str(value)
    try:
        inputs = {key: Artifact.open(path) for key, path in task.inputs.items()}
        return Done(task.stage.run(inputs, task.out))
    except (PrismError, Requeue) as problem:
        return Failed(problem)
    except BaseException as problem:
        return Failed(_portable(problem))


def _portable(problem: BaseException) -> BaseException:
    """An error that can be pickled: an OSError keeps its number (for a full disk), others their traceback."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return OSError(problem.errno, problem.strerror)
    return StageBug("".join(traceback.format_exception(problem)))


def _die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, even if the parent is killed (Linux)."""
    import ctypes

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() == 1:
            os._exit(1)
