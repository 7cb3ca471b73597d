"""The graph of a recipe: named stages in order, each skipped when its artifact already exists.

A stage's folder is `RUN_DIR/artifacts/KIND-FINGERPRINT`. So two branches of a study share the stages they have in
common, and a changed config never reads an old result. `RUN_DIR/NAME` links to the folder of the stage called NAME,
and `RUN_DIR/graph.json` records the stages of the last run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import field_names, to_mapping
from megatron_prism.pipeline.execution import Observer, run_in_order, run_in_pool
from megatron_prism.pipeline.node import Located, Node, locate
from megatron_prism.pipeline.previous_run import GRAPH, explain_new_folders
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger

log = get_logger(__name__)


class Graph:
    """Stages in the order they were added; a stage is added after its inputs, so they can run in this order.

    Args:
        name: the name of the recipe.
        jobs: how many processes on one machine the recipe uses by default.
        expected_seconds: roughly how long each stage takes, by name, to estimate the remaining time.

    Attributes:
        absent: parameters that have no value yet, with what a real run says about each; such a graph can be shown and
            planned, but not run.
        parameters: the recipe's parameters with the values from which the graph was made.
    """

    def __init__(self, name: str, jobs: int = 1, expected_seconds: Mapping[str, float] | None = None) -> None:
        self.name, self.jobs = name, jobs
        self.expected_seconds = dict(expected_seconds or {})
        self.nodes: dict[str, Node] = {}
        self.absent: dict[str, str] = {}
        self.parameters: dict[str, Any] = {}
        self._overrides: dict[str, dict[str, Any]] = {}

    def add(
        self,
        name: str,
        stage: Stage,
        derive: Callable[[Any], Any] | None = None,
        implied: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] | None = None,
        /,
        **inputs: Node,
    ) -> Node:
        """Add a stage.

        Args:
            name: unique in the graph.
            derive: takes the stage and returns it with the values that follow from other stages (for example their
                architecture). It is applied now, and again after overrides, so that one override reaches every stage
                that depends on it.
            implied: takes the stage and its overrides and returns further overrides that follow from them (for example
                the layout for the length of a row). It is applied when `derive` is; the user's overrides win over it.
            inputs: nodes that were added before.
        """
        if name in self.nodes:
            raise ConfigError(f"recipe '{self.name}': two stages are called '{name}'; rename one")
        for key, node in inputs.items():
            if self.nodes.get(node.name) is not node:
                raise ConfigError(
                    f"recipe '{self.name}': input '{key}' of stage '{name}' is not a stage of this recipe"
                )
        node = Node(name, stage if derive is None else derive(stage), dict(inputs), derive, implied)
        node.settle({})
        self.nodes[name] = node
        return node

    def node(self, name: str) -> Node:
        if name not in self.nodes:
            raise ConfigError(f"recipe '{self.name}' has no stage '{name}'{suggest(name, self.nodes)}")
        return self.nodes[name]

    def override(
        self, overrides: Mapping[str, Any], target: str | None = None, also_known: Iterable[str] = ()
    ) -> None:
        """Apply `STAGE.key=value`; with `target`, a bare `key=value` sets a field of that stage.

        Args:
            also_known: further keys to suggest for a misspelled one.

        Raises:
            ConfigError: for an unknown key, a value that the stage refuses, or one that contradicts a value derived
                from other stages.
        """
        for key, value in overrides.items():
            head, _, rest = key.partition(".")
            if rest and head in self.nodes:
                node = self.nodes[head]
            elif target is not None and head in field_names(type(self.node(target).stage)):
                node, rest = self.node(target), key
            elif head in self.nodes:
                raise ConfigError(
                    f"recipe '{self.name}': '{key}' is a stage and cannot be set; set one of its keys, {head}.KEY=VALUE"
                )
            elif not rest and (owners := [n.name for n in self.nodes.values() if _has_field(n, key)]):
                raise ConfigError(
                    f"recipe '{self.name}': unknown key '{key}', which is one of a stage; set {owners[0]}.{key}"
                    + (f" (or that of {', '.join(owners[1:])})" if owners[1:] else "")
                )
            else:
                known = [
                    *also_known,
                    *self.nodes,
                    *(field_names(type(self.node(target).stage)) if target else ()),
                ]
                raise ConfigError(f"recipe '{self.name}': unknown key '{key}'{suggest(head, known)}")
            self._overrides.setdefault(node.name, {})[rest] = value
        # In the graph's order, so that derived values follow the overrides of earlier stages.
        for node in self.nodes.values():
            node.rederive()
            node.settle(self._overrides.get(node.name, {}))

    def needed(self, target: str | None) -> list[Node]:
        """`target` and the nodes it depends on (all nodes if None), in order."""
        if target is None:
            return list(self.nodes.values())
        wanted = {self.node(target).name}
        for node in reversed(list(self.nodes.values())):
            if node.name in wanted:
                wanted.update(parent.name for parent in node.inputs.values())
        return [node for node in self.nodes.values() if node.name in wanted]

    def downstream(self, start: str) -> set[str]:
        """`start` and every stage that depends on it, directly or indirectly."""
        affected = {self.node(start).name}
        for node in self.nodes.values():
            if any(parent.name in affected for parent in node.inputs.values()):
                affected.add(node.name)
        return affected

    def stages_to_rerun(self, target: str | None, start_from: str | None, force: bool) -> set[str]:
        """Names of the stages to run even if they are done; see `run` for the arguments."""
        rerun = self.downstream(start_from) if start_from is not None else set()
        if force:
            rerun |= {target} if target is not None else set(self.nodes)
        return rerun

    def run(
        self,
        run_dir: Path,
        *,
        target: str | None = None,
        start_from: str | None = None,
        force: bool = False,
        jobs: int | None = None,
        max_restarts: int = 0,
        observer: Observer | None = None,
    ) -> dict[str, Artifact]:
        """Run every stage whose artifact is needed and missing; return the artifacts by stage name, in order.

        Args:
            run_dir: the folder for the artifacts; created if absent.
            target: run only this stage and what it depends on.
            start_from: run this stage and everything that depends on it, even if done.
            force: run the target (or, without one, every stage) even if done.
            jobs: how many worker processes run stages in parallel; 1 runs them in this process, one after the other.
                None: the recipe's default.
            max_restarts: how often a stage that lost a process is started again; it goes on from its last checkpoint.
            observer: receives the progress.

        Raises:
            Requeue: if the run was asked to stop, and did.
            PrismError: from a stage, or for a damaged artifact; finished artifacts are kept.
        """
        for message in self.absent.values():
            raise ConfigError(message)
        run_dir = Path(run_dir)
        located = locate(self.needed(target), run_dir)
        rerun = self.stages_to_rerun(target, start_from, force)
        for line in explain_new_folders(run_dir, located):
            log.warning(line)
        try:
            (run_dir / "artifacts").mkdir(parents=True, exist_ok=True)
            self._record(run_dir, located)
        except OSError as problem:
            raise ConfigError(
                f"{run_dir}: cannot write to this run folder ({problem.strerror}); choose another folder for the run"
            ) from None
        processes = self.jobs if jobs is None else jobs
        observer = observer or Observer()
        if processes == 1:
            artifacts = run_in_order(located, run_dir, rerun, observer, max_restarts=max_restarts)
        else:
            artifacts = run_in_pool(
                located, run_dir, rerun, observer, processes=processes, max_restarts=max_restarts
            )
        return {name: artifacts[name] for name in located}

    def _record(self, run_dir: Path, located: Mapping[str, Located]) -> None:
        write_json(
            run_dir / GRAPH,
            {
                "recipe": self.name,
                "stages": [
                    {
                        "name": name,
                        "kind": each.node.stage.kind,
                        "folder": str(each.folder.relative_to(run_dir)),
                        "inputs": {key: parent.name for key, parent in each.node.inputs.items()},
                        "config": to_mapping(each.node.stage),
                    }
                    for name, each in located.items()
                ],
            },
        )


def _has_field(node: Node, key: str) -> bool:
    return key in field_names(type(node.stage))
