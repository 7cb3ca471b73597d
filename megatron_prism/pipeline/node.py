"""A node of a graph: a stage with its name and inputs, its fingerprint, and the folder of its artifact."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import apply_overrides, flat, to_mapping
from megatron_prism.pipeline.stage import Stage


@dataclass(eq=False)
class Node:
    """One stage in a graph; `inputs` maps input names to the nodes whose artifacts it reads."""

    name: str
    stage: Stage
    inputs: dict[str, Node] = field(default_factory=dict)
    derive: Callable[[Any], Any] | None = None
    implied: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] | None = None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the stage and its inputs; for many nodes at once use `locate`."""
        return _fingerprint(self, {})

    def folder(self, run_dir: Path) -> Path:
        return _folder(self, self.fingerprint, run_dir)

    def rederive(self) -> None:
        """Apply `derive` again, after other stages have changed."""
        if self.derive is None:
            return
        try:
            self.stage = self.derive(self.stage)
        except ConfigError as problem:
            raise type(problem)(f"stage '{self.name}': {problem}") from None

    def settle(self, chosen: Mapping[str, Any]) -> None:
        """Apply what `implied` returns, and then the user's overrides `chosen`, which win.

        Raises:
            ConfigError: for an unknown key, or a value that the stage refuses or that contradicts a derived one.
        """
        where = f"stage '{self.name}'"
        try:
            further = {} if self.implied is None else self.implied(self.stage, chosen)
        except ConfigError as problem:
            raise type(problem)(f"{where}: {problem}") from None
        if further or chosen:
            self.stage = apply_overrides(self.stage, {**further, **chosen}, where=where)
        if chosen:
            self.check_derived()

    def check_derived(self) -> None:
        """Check the stage against the values derived from other stages.

        Raises:
            ConfigError: names the first value that differs.
        """
        if self.derive is None:
            return
        try:
            made = self.derive(self.stage)
        except ConfigError as problem:
            raise type(problem)(f"stage '{self.name}': {problem}") from None
        current, derived = flat(to_mapping(self.stage)), flat(to_mapping(made))
        for key in derived:
            if current.get(key) != derived[key]:
                raise ConfigError(
                    f"stage '{self.name}': {key}={current.get(key)} contradicts an earlier stage, from which the value "
                    f"{derived[key]} is derived; change that stage instead"
                )


@dataclass(frozen=True)
class Located:
    """A node with its fingerprint (costly to compute) and the folder of its artifact in a run."""

    node: Node
    fingerprint: str
    folder: Path
    input_fingerprints: Mapping[str, str]

    @property
    def lineage(self) -> str | None:
        """See `Stage.lineage`."""
        return self.node.stage.lineage(self.input_fingerprints)

    def link(self, run_dir: Path) -> None:
        """Link RUN_DIR/NAME to the artifact, unless a file or folder with that name exists."""
        link = run_dir / self.node.name
        if link.is_symlink() or not link.exists():
            temporary = link.with_name(f".{link.name}.link")
            temporary.unlink(missing_ok=True)
            os.symlink(self.folder.relative_to(link.parent), temporary)
            os.replace(temporary, link)


def locate(nodes: Iterable[Node], run_dir: Path) -> dict[str, Located]:
    """The nodes by name, in the same order; each fingerprint is computed once."""
    known: dict[str, str] = {}
    return {
        node.name: Located(
            node,
            fingerprint,
            _folder(node, fingerprint, run_dir),
            {key: known[parent.name] for key, parent in node.inputs.items()},
        )
        for node in nodes
        for fingerprint in [_fingerprint(node, known)]
    }


def _fingerprint(node: Node, known: dict[str, str]) -> str:
    if node.name not in known:
        inputs = {key: _fingerprint(parent, known) for key, parent in node.inputs.items()}
        known[node.name] = node.stage.fingerprint(inputs)
    return known[node.name]


def _folder(node: Node, fingerprint: str, run_dir: Path) -> Path:
    return run_dir / "artifacts" / f"{node.stage.kind}-{fingerprint[:12]}"
