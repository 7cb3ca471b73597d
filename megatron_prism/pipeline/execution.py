"""Run the nodes of a graph: one after the other in this process, or in parallel in a pool of workers.

Both skip stages that are done, keep finished artifacts when a stage fails, and report to the same observer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.errors import Requeue, WorkerLost
from megatron_prism.pipeline.artifact import Artifact, remove_resume
from megatron_prism.pipeline.artifact_lock import artifact_lock
from megatron_prism.pipeline.launch import run_stage
from megatron_prism.pipeline.node import Located, Node
from megatron_prism.pipeline.pool import Result, WorkerPool, worker_pool
from megatron_prism.pipeline.pool_worker import StageBug
from megatron_prism.pipeline.schedule import Job, startable
from megatron_prism.pipeline.stage_run import StageRun
from megatron_prism.pipeline.stop_file import ask_to_stop
from megatron_prism.platform import stop_signals
from megatron_prism.platform.console import get_logger

# How often the observer's `tick` is called while nothing else happens.
TICK_SECONDS = 1.0

log = get_logger(__name__)


class Observer:
    """Callbacks for the progress of a run; a subclass overrides those it needs."""

    def skipped(self, node: Node, artifact: Artifact) -> None:
        """The artifact of `node` existed already."""

    def started(self, node: Node) -> None:
        """`node` starts to run."""

    def logged(self, name: str, text: str) -> None:
        """Stage `name` logged a line in a worker. (Stages in this process log directly.)"""

    def done(self, node: Node, artifact: Artifact) -> None:
        """`node` finished without an error."""

    def failed(self, node: Node, problem: BaseException, running: Sequence[str]) -> None:
        """`node` failed; the run ends when the stages in `running` have ended."""

    def tick(self) -> None:
        """Called about once a second while stages run in parallel."""


@dataclass(frozen=True)
class _Running:
    """A stage that runs in the pool, and the lock on its folder."""

    located: Located
    stage_run: StageRun
    lock: ExitStack


def run_in_order(
    located: Mapping[str, Located], run_dir: Path, rerun: set[str], observer: Observer, *, max_restarts: int
) -> dict[str, Artifact]:
    """Run the nodes one after the other in this process; stages of several processes are launched with torchrun.

    Args:
        located: the nodes, by name.
        rerun: names of the stages to run even if their artifact exists.
        max_restarts: how often a stage that lost a process is started again.

    Raises:
        Requeue: if the run was asked to stop, and did.
    """
    artifacts: dict[str, Artifact] = {}
    for each in located.values():
        artifact = _existing(each, rerun, observer)
        if artifact is None:
            artifact = _run_here(each, artifacts, observer, max_restarts)
        artifacts[each.node.name] = artifact
        each.link(run_dir)
    return artifacts


def run_in_pool(
    located: Mapping[str, Located],
    run_dir: Path,
    rerun: set[str],
    observer: Observer,
    *,
    processes: int,
    max_restarts: int,
) -> dict[str, Artifact]:
    """Run the nodes in up to `processes` workers, in order, each as soon as its inputs exist.

    A stage that needs more processes runs alone and is launched with torchrun. When a stage fails, no further stage is
    started, the running ones finish, and the first error is raised.
    """
    with worker_pool(processes) as pool:
        run = _PoolRun(located, run_dir, rerun, observer, pool=pool, max_restarts=max_restarts)
        with stop_signals.forwarded(run.ask_to_stop):
            return run.run()


class _PoolRun:
    """The state of a run in a pool: waiting nodes, running nodes, and finished artifacts."""

    def __init__(
        self,
        located: Mapping[str, Located],
        run_dir: Path,
        rerun: set[str],
        observer: Observer,
        *,
        pool: WorkerPool,
        max_restarts: int,
    ) -> None:
        self.waiting, self.run_dir, self.rerun = list(located.values()), run_dir, rerun
        self.observer, self.pool, self.max_restarts = observer, pool, max_restarts
        self.restarts: Counter[str] = Counter()
        self.stop_asked = False
        self.running: dict[str, _Running] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.problem: BaseException | None = None

    def run(self) -> dict[str, Artifact]:
        try:
            while True:
                if self.stop_asked:
                    self._stop()
                for each in self._to_start():
                    self._start(each)
                if self.running:
                    self._listen()
                elif self.problem is not None:
                    raise self.problem
                elif not self.waiting:
                    return self.artifacts
        finally:
            for running in self.running.values():
                running.lock.close()

    def ask_to_stop(self) -> None:
        """Start no further stage, and stop the running ones; called by a signal handler."""
        self.stop_asked = True

    def _stop(self) -> None:
        """Stages that can save their state are asked to; others end at once."""
        self.problem = self.problem or Requeue("stopped; the same command goes on with what is finished")
        for name, running in list(self.running.items()):
            if running.located.node.stage.stoppable:
                ask_to_stop(running.stage_run.partial)
            else:
                self.pool.kill(name)
                self.running.pop(name).lock.close()

    def _to_start(self) -> list[Located]:
        """The waiting stages to start now; those whose artifact exists are removed from `waiting`."""
        if self.problem is not None:
            return []
        for each in list(self.waiting):
            ready = all(parent.name in self.artifacts for parent in each.node.inputs.values())
            if ready and (artifact := _existing(each, self.rerun, self.observer)):
                self._keep(each, artifact)
        # Two stages with equal configs and inputs share a folder: the second waits and then finds the artifact.
        folders = {each.stage_run.folder for each in self.running.values()}
        candidates = {}
        for each in self.waiting:
            if each.folder not in folders:
                folders.add(each.folder)
                candidates[each.node.name] = each
        jobs = jobs_of(each.node for each in candidates.values())
        return [
            candidates[job.name] for job in startable(jobs, self.artifacts, self.pool.free, self.pool.size)
        ]

    def _keep(self, each: Located, artifact: Artifact) -> None:
        if each in self.waiting:
            self.waiting.remove(each)
        self.artifacts[each.node.name] = artifact
        each.link(self.run_dir)

    def _start(self, each: Located) -> None:
        node = each.node
        self.waiting.remove(each)
        try:
            if node.stage.world_size > self.pool.size:
                self._keep(each, _run_here(each, self.artifacts, self.observer, self.max_restarts))
                return
            with ExitStack() as lock:
                lock.enter_context(artifact_lock(each.folder))
                stage_run = _stage_run(each, self.artifacts)
                self.observer.started(node)
                self.pool.start(node.name, node.stage, stage_run.inputs, stage_run.partial)
                self.running[node.name] = _Running(each, stage_run, lock.pop_all())
        except (Exception, Requeue) as problem:
            self._fail(node, problem)

    def _listen(self) -> None:
        for event in self.pool.events(TICK_SECONDS):
            if isinstance(event, Result):
                self._end(event)
            else:
                self.observer.logged(event.name, event.text)
        self.observer.tick()

    def _end(self, result: Result) -> None:
        ended = self.running.pop(result.name)
        node = ended.located.node
        if isinstance(result.problem, WorkerLost | StageBug) and self._restarts(ended, result.problem):
            return
        with ended.lock:
            try:
                if result.problem is not None:
                    raise result.problem
                artifact = ended.stage_run.seal(result.metrics or {})
            except Requeue as stopped:
                self.problem = _named(node, stopped)
                return
            except Exception as problem:
                self._fail(node, ended.stage_run.explain(problem))
                return
        self._keep(ended.located, artifact)
        self.observer.done(node, artifact)

    def _restarts(self, ended: _Running, problem: BaseException) -> bool:
        """Start a stage that lost a process again, if it may be."""
        name = ended.located.node.name
        if self.problem is not None or self.restarts[name] >= self.max_restarts:
            return False
        self.restarts[name] += 1
        _tell_restart(name, problem, self.restarts[name], self.max_restarts)
        ended.stage_run.restart()
        self.pool.start(name, ended.located.node.stage, ended.stage_run.inputs, ended.stage_run.partial)
        self.running[name] = ended
        return True

    def _fail(self, node: Node, problem: BaseException) -> None:
        self.problem = self.problem or problem
        self.observer.failed(node, problem, list(self.running))


def jobs_of(nodes: Iterable[Node]) -> list[Job]:
    """The nodes as jobs of the schedule."""
    return [
        Job(node.name, frozenset(parent.name for parent in node.inputs.values()), node.stage.world_size)
        for node in nodes
    ]


def _existing(each: Located, rerun: set[str], observer: Observer) -> Artifact | None:
    """The artifact, if it exists and the stage is not in `rerun`."""
    if not each.folder.exists() or each.node.name in rerun:
        return None
    artifact = Artifact.open(each.folder, kind=each.node.stage.kind)
    remove_resume(each.folder)
    observer.skipped(each.node, artifact)
    return artifact


def _run_here(
    each: Located, artifacts: Mapping[str, Artifact], observer: Observer, max_restarts: int
) -> Artifact:
    if stop_signals.received():
        raise Requeue("stopped; the same command goes on with what is finished")
    observer.started(each.node)
    with artifact_lock(each.folder):
        stage_run = _stage_run(each, artifacts)
        try:
            artifact = stage_run.seal(_with_restarts(each.node, stage_run, max_restarts))
        except Requeue as stopped:
            raise _named(each.node, stopped) from None
        except Exception as problem:
            explained = stage_run.explain(problem)
            if explained is problem:
                raise
            raise explained from problem
    observer.done(each.node, artifact)
    return artifact


def _with_restarts(node: Node, stage_run: StageRun, max_restarts: int) -> dict[str, Any]:
    """The metrics of the stage, which is started again when it loses a process."""
    for restart in range(max_restarts + 1):
        try:
            return run_stage(node.stage, stage_run.inputs, stage_run.partial)
        except WorkerLost as problem:
            if restart == max_restarts:
                raise
            _tell_restart(node.name, problem, restart + 1, max_restarts)
            stage_run.restart()
    raise AssertionError("max_restarts is at least 0")


def _tell_restart(name: str, problem: BaseException, number: int, most: int) -> None:
    reason = str(problem).strip().splitlines()[-1]
    log.warning("stage '%s' starts again (%d of %d): %s", name, number, most, reason)


def _named(node: Node, stopped: Requeue) -> Requeue:
    return Requeue(f"stage '{node.name}': {stopped}")


def _stage_run(each: Located, artifacts: Mapping[str, Artifact]) -> StageRun:
    inputs = {key: artifacts[parent.name] for key, parent in each.node.inputs.items()}
    return StageRun(
        each.node.name, each.node.stage, fingerprint=each.fingerprint, folder=each.folder, inputs=inputs
    )
