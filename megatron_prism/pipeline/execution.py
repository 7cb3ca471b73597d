"""Running the nodes of a graph: in this process one after the other, or side by side in a pool of workers.

Both skip what is done, keep what was finished when a stage fails, and say so to the same observer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.launch import run_stage
from megatron_prism.pipeline.node import Located, Node
from megatron_prism.pipeline.pool import Result, WorkerPool, worker_pool
from megatron_prism.pipeline.schedule import Job, startable
from megatron_prism.pipeline.stage_run import StageRun, artifact_lock

# How often an observer that draws the time left is called while nothing happens.
TICK_SECONDS = 1.0


class Observer:
    """What a run tells while it goes; subclass it and override what is of interest."""

    def skipped(self, node: Node, artifact: Artifact) -> None:
        """`node` was done before."""

    def started(self, node: Node) -> None:
        """`node` begins."""

    def logged(self, name: str, text: str) -> None:
        """A log line of stage `name` in a worker. (Stages in this process log by themselves.)"""

    def done(self, node: Node, artifact: Artifact) -> None:
        """`node` ended well."""

    def failed(self, node: Node, problem: BaseException, running: Sequence[str]) -> None:
        """`node` failed beside the stages `running`; the run ends when those have ended."""

    def tick(self) -> None:
        """About once a second while stages run side by side."""


@dataclass(frozen=True)
class _Running:
    """A stage in the pool, and the lock on its folder."""

    located: Located
    stage_run: StageRun
    lock: ExitStack


def in_turn(
    located: Mapping[str, Located], run_dir: Path, again: set[str], observer: Observer
) -> dict[str, Artifact]:
    """Make the nodes in this process in their order; a stage of several processes is launched with torchrun."""
    artifacts: dict[str, Artifact] = {}
    for each in located.values():
        artifact = _made_before(each, again, observer) or _make_here(each, artifacts, observer)
        artifacts[each.node.name] = artifact
        each.link(run_dir)
    return artifacts


def side_by_side(
    located: Mapping[str, Located], run_dir: Path, again: set[str], observer: Observer, processes: int
) -> dict[str, Artifact]:
    """Make the nodes in up to `processes` workers, each as soon as its inputs are there, first come first served.

    A stage that needs more processes than that runs alone, launched with torchrun. When a stage fails, no more are
    started, those under way end, and the first error is raised.
    """
    with worker_pool(processes) as pool:
        return _SideBySide(located, run_dir, again, observer, pool).run()


class _SideBySide:
    """The state of such a run: what waits, what is under way, what is there."""

    def __init__(
        self,
        located: Mapping[str, Located],
        run_dir: Path,
        again: set[str],
        observer: Observer,
        pool: WorkerPool,
    ) -> None:
        self.waiting, self.run_dir, self.again = list(located.values()), run_dir, again
        self.observer, self.pool = observer, pool
        self.running: dict[str, _Running] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.problem: BaseException | None = None

    def run(self) -> dict[str, Artifact]:
        try:
            while True:
                for each in self._to_start():
                    self._start(each)
                if self.running:
                    self._listen()
                elif self.problem is not None:
                    raise self.problem
                elif not self.waiting:
                    return self.artifacts
        finally:
            for under_way in self.running.values():
                under_way.lock.close()

    def _to_start(self) -> list[Located]:
        """The waiting stages to start now; those that are done leave `waiting` at once."""
        if self.problem is not None:
            return []
        for each in list(self.waiting):
            ready = all(parent.name in self.artifacts for parent in each.node.inputs.values())
            if ready and (artifact := _made_before(each, self.again, self.observer)):
                self._keep(each, artifact)
        # Two stages may be the same one by another name: the second finds the first one's artifact when it is done.
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
                self._keep(each, _make_here(each, self.artifacts, self.observer))
                return
            with ExitStack() as lock:
                lock.enter_context(artifact_lock(each.folder))
                stage_run = _stage_run(each, self.artifacts)
                self.observer.started(node)
                self.pool.start(node.name, node.stage, stage_run.inputs, stage_run.partial)
                self.running[node.name] = _Running(each, stage_run, lock.pop_all())
        except Exception as problem:
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
        with ended.lock:
            try:
                if result.problem is not None:
                    raise result.problem
                artifact = ended.stage_run.seal(result.metrics or {})
            except Exception as problem:
                self._fail(node, ended.stage_run.explain(problem))
                return
        self._keep(ended.located, artifact)
        self.observer.done(node, artifact)

    def _fail(self, node: Node, problem: BaseException) -> None:
        self.problem = self.problem or problem
        self.observer.failed(node, problem, list(self.running))


def jobs_of(nodes: Iterable[Node]) -> list[Job]:
    """The nodes as the schedule sees them."""
    return [
        Job(node.name, frozenset(parent.name for parent in node.inputs.values()), node.stage.world_size)
        for node in nodes
    ]


def _made_before(each: Located, again: set[str], observer: Observer) -> Artifact | None:
    """The artifact, if it is there and need not be made again."""
    if not each.folder.exists() or each.node.name in again:
        return None
    artifact = Artifact.open(each.folder, kind=each.node.stage.kind)
    observer.skipped(each.node, artifact)
    return artifact


def _make_here(each: Located, artifacts: Mapping[str, Artifact], observer: Observer) -> Artifact:
    observer.started(each.node)
    with artifact_lock(each.folder):
        stage_run = _stage_run(each, artifacts)
        try:
            artifact = stage_run.seal(run_stage(each.node.stage, stage_run.inputs, stage_run.partial))
        except Exception as problem:
            explained = stage_run.explain(problem)
            if explained is problem:
                raise
            raise explained from problem
    observer.done(each.node, artifact)
    return artifact


def _stage_run(each: Located, artifacts: Mapping[str, Artifact]) -> StageRun:
    inputs = {key: artifacts[parent.name] for key, parent in each.node.inputs.items()}
    return StageRun(each.node.name, each.node.stage, each.fingerprint, each.folder, inputs)
