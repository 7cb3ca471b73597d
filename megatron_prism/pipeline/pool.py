"""Worker processes on this machine that run stages in parallel, each with one thread.

A worker imports the training stack once, so its next stage starts immediately. A stage of several processes runs on one
worker per rank. The kernel ends the workers when this process ends, even if it is killed.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError, WorkerLost
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.pool_worker import Done, Failed, LogLine, Task, work
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.hardware import check_devices
from megatron_prism.platform.ports import free_port

EXIT_SECONDS = 5.0


@dataclass(frozen=True)
class Result:
    """How a stage ended: the metrics of its rank 0, or the first error."""

    name: str
    metrics: dict[str, Any] | None = None
    problem: BaseException | None = None


@dataclass
class _Worker:
    process: Any
    connection: Connection
    task: Task | None = None


class WorkerPool:
    """Workers and their current tasks. Use `worker_pool`, which ends the workers."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[_Worker] = []
        self._metrics: dict[str, dict[str, Any]] = {}

    @property
    def free(self) -> int:
        """How many workers are idle or not started yet."""
        return self.size - sum(worker.task is not None for worker in self._workers)

    def start(self, name: str, stage: Stage, inputs: Mapping[str, Artifact], out: Path) -> None:
        """Start `stage` on one free worker per rank; `events` yields its result.

        Raises:
            ConfigError: for a stage whose class a worker cannot import, or that needs more GPUs than there are.
        """
        count = stage.world_size
        check_devices(count)
        try:
            pickle.dumps(stage)
        except (pickle.PicklingError, AttributeError):
            raise ConfigError(
                f"stage '{name}': a worker process cannot import its class {type(stage).__qualname__}; move the class "
                "into a module, or use --jobs 1"
            ) from None
        port = free_port() if count > 1 else 0
        idle = [worker for worker in self._workers if worker.task is None]
        idle += [self._spawn() for _ in range(count - len(idle))]
        paths = {key: artifact.path.resolve() for key, artifact in inputs.items()}
        for rank, worker in enumerate(idle[:count]):
            worker.task = Task(name, stage, paths, out.resolve(), rank, count, port)
            worker.connection.send(worker.task)

    def events(self, timeout: float | None) -> Iterator[LogLine | Result]:
        """Log lines and results from the workers. Waits up to `timeout` seconds for the first."""
        busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
        for connection in wait(list(busy), timeout):
            worker = busy[connection]  # type: ignore[index]
            if worker.task is None:
                # Its stage just failed on another rank, so this worker was ended, too.
                continue
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join(EXIT_SECONDS)
                message = Failed(
                    WorkerLost(
                        f"stage '{worker.task.name}': its worker process crashed or was killed "
                        f"(exit code {worker.process.exitcode}); run the same command again to continue"
                    )
                )
            if isinstance(message, LogLine):
                yield message
            else:
                yield from self._ended(worker, message)

    def _ended(self, worker: _Worker, message: Done | Failed) -> Iterator[Result]:
        task, worker.task = worker.task, None
        assert task is not None
        others = [other for other in self._workers if other.task and other.task.name == task.name]
        if isinstance(message, Failed):
            # The other ranks would wait for this one in a collective until it times out.
            for member in [worker, *others]:
                member.process.kill()
                self._workers.remove(member)
            _end([worker, *others])
            yield Result(task.name, problem=message.problem)
            return
        if task.rank == 0:
            self._metrics[task.name] = message.metrics
        if not others:
            yield Result(task.name, metrics=self._metrics.pop(task.name))

    def kill(self, name: str) -> None:
        """End the workers of a stage at once; there will be no result."""
        members = [worker for worker in self._workers if worker.task and worker.task.name == name]
        for member in members:
            member.process.kill()
            self._workers.remove(member)
        _end(members)

    def _spawn(self) -> _Worker:
        # A new interpreter, because a fork would copy locks that other threads hold.
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there,), name="prism worker")
        process.start()
        there.close()
        worker = _Worker(process, here)
        self._workers.append(worker)
        return worker

    def close(self, kill: bool) -> None:
        """End the workers: immediately, or after their current tasks."""
        if kill:
            for worker in self._workers:
                worker.process.kill()
        _end(self._workers)
        self._workers.clear()


@contextmanager
def worker_pool(size: int) -> Iterator[WorkerPool]:
    """A pool of up to `size` workers, which start when they are first needed."""
    pool = WorkerPool(size)
    try:
        yield pool
    except BaseException:
        pool.close(kill=True)
        raise
    pool.close(kill=False)


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        worker.process.join(EXIT_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
