"""The graph of a recipe: named stages in order, each skipped when its artifact is already there.

A stage's folder is `RUN_DIR/artifacts/KIND-FINGERPRINT`, so two branches of a study share what they have in common
and a changed config never meets an old result. `RUN_DIR/NAME` links to the folder of the stage called NAME, and
`RUN_DIR/graph.json` keeps the shape of the last run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import apply_overrides, field_names, to_mapping
from megatron_prism.pipeline.execution import Observer, in_turn, side_by_side
from megatron_prism.pipeline.node import Located, Node, locate
from megatron_prism.pipeline.stage import Stage


class Graph:
    """Stages in the order they were added, which is an order they can run in: inputs must exist before users.

    Args:
        name: of the recipe.
        jobs: how many processes of this machine the recipe is made to use at once.
        expected_seconds: about how long each stage takes, by name, for an estimate of the time left.
    """

    def __init__(self, name: str, jobs: int = 1, expected_seconds: Mapping[str, float] | None = None) -> None:
        self.name, self.jobs = name, jobs
        self.expected_seconds = dict(expected_seconds or {})
        self.nodes: dict[str, Node] = {}
        self._overrides: dict[str, dict[str, Any]] = {}

    def add(
        self, name: str, stage: Stage, derive: Callable[[Any], Any] | None = None, /, **inputs: Node
    ) -> Node:
        """Add a stage.

        Args:
            name: unique in the graph.
            derive: gives a stage the values that follow from other nodes' stages (their architecture, say). It is
                applied now and again after overrides, so one override reaches every stage that depends on it.
            inputs: nodes added before.
        """
        if name in self.nodes:
            raise ConfigError(f"recipe '{self.name}': two stages are called '{name}'")
        for key, node in inputs.items():
            if self.nodes.get(node.name) is not node:
                raise ConfigError(
                    f"recipe '{self.name}': input '{key}' of '{name}' is not a stage of this recipe"
                )
        node = Node(name, stage if derive is None else derive(stage), dict(inputs), derive)
        self.nodes[name] = node
        return node

    def node(self, name: str) -> Node:
        if name not in self.nodes:
            raise ConfigError(f"recipe '{self.name}' has no stage '{name}'{suggest(name, self.nodes)}")
        return self.nodes[name]

    def override(
        self, overrides: Mapping[str, Any], target: str | None = None, also_known: Iterable[str] = ()
    ) -> None:
        """Apply `STAGE.key=value`; with `target`, a bare `key=value` belongs to that stage.

        Args:
            also_known: other keys that a misspelled one may stand for.

        Raises:
            ConfigError: for a key that names no stage and no field of the target, that the stage refuses, or that
                contradicts what follows from other stages.
        """
        for key, value in overrides.items():
            head, _, rest = key.partition(".")
            if rest and head in self.nodes:
                node = self.nodes[head]
            elif target is not None and head in field_names(type(self.node(target).stage)):
                node, rest = self.node(target), key
            elif head in self.nodes:
                raise ConfigError(
                    f"recipe '{self.name}': '{key}' is a stage; change one of its keys, for example {head}.KEY=VALUE"
                )
            else:
                known = [
                    *also_known,
                    *self.nodes,
                    *(field_names(type(self.node(target).stage)) if target else ()),
                ]
                raise ConfigError(f"recipe '{self.name}': unknown key '{key}'{suggest(head, known)}")
            self._overrides.setdefault(node.name, {})[rest] = value
        # In the graph's order: what a node derives from the ones before it follows their overrides.
        for node in self.nodes.values():
            node.rederive()
            if chosen := self._overrides.get(node.name):
                node.stage = apply_overrides(node.stage, chosen, where=f"stage '{node.name}'")
                node.check_derived()

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

    def again(self, target: str | None, start_from: str | None, force: bool) -> set[str]:
        """Names of the stages to make even if they are done; see `run` for the arguments."""
        again = self.downstream(start_from) if start_from is not None else set()
        if force:
            again |= {target} if target is not None else set(self.nodes)
        return again

    def run(
        self,
        run_dir: Path,
        target: str | None = None,
        start_from: str | None = None,
        force: bool = False,
        jobs: int | None = None,
        observer: Observer | None = None,
    ) -> dict[str, Artifact]:
        """Make every artifact that is needed and missing; return them by stage name, in the graph's order.

        Args:
            run_dir: where artifacts lie; created if absent.
            target: stop at this stage (and run only what it needs).
            start_from: run this stage and all after it again, even if done.
            force: run the target (or, without one, everything) again, even if done.
            jobs: processes to run stages in, side by side where the graph allows it; 1 runs them in this process, one
                after the other. None: the recipe's own number.
            observer: is told of each stage before and after.

        Raises:
            PrismError: from a stage, or for a damaged artifact in the way; whatever was finished stays.
        """
        run_dir = Path(run_dir)
        located = locate(self.needed(target), run_dir)
        again = self.again(target, start_from, force)
        try:
            (run_dir / "artifacts").mkdir(parents=True, exist_ok=True)
            self._record(run_dir, located)
        except OSError as problem:
            raise ConfigError(f"{run_dir}: cannot be made a run folder ({problem.strerror})") from None
        processes = self.jobs if jobs is None else jobs
        observer = observer or Observer()
        if processes == 1:
            artifacts = in_turn(located, run_dir, again, observer)
        else:
            artifacts = side_by_side(located, run_dir, again, observer, processes)
        return {name: artifacts[name] for name in located}

    def _record(self, run_dir: Path, located: Mapping[str, Located]) -> None:
        write_json(
            run_dir / "graph.json",
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
