"""The graph of a recipe: named stages in order, each skipped when its artifact is already there.

A stage's folder is `RUN_DIR/artifacts/KIND-FINGERPRINT`, so two branches of a study share what they have in common
and a changed config never meets an old result. `RUN_DIR/NAME` links to the folder of the stage called NAME, and
`RUN_DIR/graph.json` keeps the shape of the last run.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from megatron_prism.errors import ArtifactError, ConfigError, DataError, PrismError, suggest
from megatron_prism.pipeline.artifact import Artifact, Receipt, partial_path, seal, write_json
from megatron_prism.pipeline.config import apply_overrides, field_names, plain
from megatron_prism.pipeline.launch import run_stage
from megatron_prism.pipeline.output import is_full_disk
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.hardware import machine_facts, versions

Event = Literal["start", "done", "skipped"]


@dataclass(eq=False)
class Node:
    """One stage in a graph, with the nodes whose artifacts it takes, by input name."""

    name: str
    stage: Stage
    inputs: dict[str, Node] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return self.stage.fingerprint({name: node.fingerprint for name, node in self.inputs.items()})

    def folder(self, run_dir: Path) -> Path:
        return run_dir / "artifacts" / f"{self.stage.kind}-{self.fingerprint[:12]}"


class Graph:
    """Stages in the order they were added, which is an order they can run in: inputs must exist before users."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: dict[str, Node] = {}

    def add(self, name: str, stage: Stage, **inputs: Node) -> Node:
        """Add a stage under a unique name; `inputs` are nodes added before."""
        if name in self.nodes:
            raise ConfigError(f"recipe '{self.name}': two stages are called '{name}'")
        for key, node in inputs.items():
            if self.nodes.get(node.name) is not node:
                raise ConfigError(
                    f"recipe '{self.name}': input '{key}' of '{name}' is not a stage of this recipe"
                )
        node = Node(name, stage, dict(inputs))
        self.nodes[name] = node
        return node

    def node(self, name: str) -> Node:
        if name not in self.nodes:
            raise ConfigError(f"recipe '{self.name}' has no stage '{name}'{suggest(name, self.nodes)}")
        return self.nodes[name]

    def override(self, overrides: Mapping[str, Any], target: str | None = None) -> None:
        """Apply `STAGE.key=value`; with `target`, a bare `key=value` belongs to that stage.

        Raises:
            ConfigError: for a key that names no stage and no field of the target, or that the stage refuses.
        """
        for key, value in overrides.items():
            head, _, rest = key.partition(".")
            if rest and head in self.nodes:
                node = self.nodes[head]
            elif target is not None and head in field_names(type(self.node(target).stage)):
                node, rest = self.node(target), key
            else:
                known = [*self.nodes, *(field_names(type(self.node(target).stage)) if target else ())]
                raise ConfigError(f"recipe '{self.name}': unknown key '{key}'{suggest(head, known)}")
            node.stage = apply_overrides(node.stage, {rest: value}, where=f"stage '{node.name}'")

    def needed(self, target: str | None) -> list[Node]:
        """The nodes to have for `target` (all, if None), in order."""
        if target is None:
            return list(self.nodes.values())
        wanted = {self.node(target).name}
        for node in reversed(list(self.nodes.values())):
            if node.name in wanted:
                wanted.update(parent.name for parent in node.inputs.values())
        return [node for node in self.nodes.values() if node.name in wanted]

    def downstream(self, start: str) -> set[str]:
        """`start` and every stage that takes, directly or not, what it makes."""
        affected = {self.node(start).name}
        for node in self.nodes.values():
            if any(parent.name in affected for parent in node.inputs.values()):
                affected.add(node.name)
        return affected

    def run(
        self,
        run_dir: Path,
        target: str | None = None,
        start_from: str | None = None,
        force: bool = False,
        observe: Callable[[Event, Node, Artifact | None], None] = lambda event, node, artifact: None,
    ) -> dict[str, Artifact]:
        """Make every artifact that is needed and missing; return them by stage name.

        Args:
            run_dir: where artifacts lie; created if absent.
            target: stop at this stage (and run only what it needs).
            start_from: run this stage and all after it again, even if done.
            force: run the target (or, without one, everything) again, even if done.
            observe: called before and after each stage.

        Raises:
            PrismError: from a stage, or for a damaged artifact in the way; whatever was finished stays.
        """
        run_dir = Path(run_dir)
        nodes = self.needed(target)
        again: set[str] = set()
        if start_from is not None:
            again |= self.downstream(start_from)
        if force:
            again |= {target} if target is not None else {node.name for node in nodes}
        try:
            (run_dir / "artifacts").mkdir(parents=True, exist_ok=True)
            self._record(run_dir, nodes)
        except OSError as problem:
            raise ConfigError(f"{run_dir}: cannot be made a run folder ({problem.strerror})") from None
        artifacts: dict[str, Artifact] = {}
        for node in nodes:
            folder = node.folder(run_dir)
            if folder.exists() and node.name not in again:
                artifact = Artifact.open(folder, kind=node.stage.kind)
                observe("skipped", node, artifact)
            else:
                observe("start", node, None)
                with _locked(folder):
                    artifact = _make(node, folder, {key: artifacts[n.name] for key, n in node.inputs.items()})
                observe("done", node, artifact)
            artifacts[node.name] = artifact
            _link(run_dir / node.name, folder)
        return artifacts

    def _record(self, run_dir: Path, nodes: Iterable[Node]) -> None:
        write_json(
            run_dir / "graph.json",
            {
                "recipe": self.name,
                "stages": [
                    {
                        "name": node.name,
                        "kind": node.stage.kind,
                        "folder": str(node.folder(run_dir).relative_to(run_dir)),
                        "inputs": {key: parent.name for key, parent in node.inputs.items()},
                        "config": plain(node.stage),
                    }
                    for node in nodes
                ],
            },
        )


def _make(node: Node, folder: Path, inputs: dict[str, Artifact]) -> Artifact:
    """Run one stage into its partial folder and seal it."""
    partial = partial_path(folder)
    if partial.exists() and not node.stage.resumable:
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC)
    clock = time.perf_counter()
    try:
        metrics = run_stage(node.stage, inputs, partial)
        receipt = Receipt(
            kind=node.stage.kind,
            fingerprint=node.fingerprint,
            stage=node.name,
            config=plain(node.stage),
            inputs={name: artifact.fingerprint for name, artifact in inputs.items()},
            metrics=metrics,
            versions=versions(),
            machine=machine_facts(),
            world_size=node.stage.world_size,
            started=started.isoformat(timespec="seconds"),
            wall_seconds=round(time.perf_counter() - clock, 3),
        )
        return seal(partial, folder, receipt)
    except Exception as problem:
        if not isinstance(problem, PrismError) and is_full_disk(problem, partial):
            raise DataError(
                f"stage '{node.name}': the disk that holds {partial} is full; nothing finished was lost: "
                "free some space (or choose another --run-dir) and run again"
            ) from problem
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the right to make `folder`; a second process is told so instead of writing into the same place."""
    lock = folder.with_name(f".{folder.name}.lock")
    with open(lock, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(
                f"{folder}: another process is making this artifact; wait for it or stop it"
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _link(link: Path, folder: Path) -> None:
    """Point RUN_DIR/NAME at the artifact; a real file or folder in the way is left alone."""
    if link.is_symlink() or not link.exists():
        temporary = link.with_name(f".{link.name}.link")
        temporary.unlink(missing_ok=True)
        os.symlink(folder.relative_to(link.parent), temporary)
        os.replace(temporary, link)
