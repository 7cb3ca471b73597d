"""A node of a graph: one stage with its place, and where its artifact lies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import to_mapping
from megatron_prism.pipeline.stage import Stage


@dataclass(eq=False)
class Node:
    """One stage in a graph, with the nodes whose artifacts it takes, by input name."""

    name: str
    stage: Stage
    inputs: dict[str, Node] = field(default_factory=dict)
    derive: Callable[[Any], Any] | None = None

    @property
    def fingerprint(self) -> str:
        """Of the stage and all before it; `locate` is for many nodes at once."""
        return _fingerprint(self, {})

    def folder(self, run_dir: Path) -> Path:
        return _folder(self, self.fingerprint, run_dir)

    def rederive(self) -> None:
        """Give the stage again what follows from other stages, which have changed."""
        if self.derive is None:
            return
        try:
            self.stage = self.derive(self.stage)
        except ConfigError as problem:
            raise type(problem)(f"stage '{self.name}': {problem}") from None

    def check_derived(self) -> None:
        """Refuse a stage that contradicts what follows from other stages.

        Raises:
            ConfigError: naming the first value that does.
        """
        if self.derive is None:
            return
        has, follows = _flat(to_mapping(self.stage)), _flat(to_mapping(self.derive(self.stage)))
        for key in follows:
            if has.get(key) != follows[key]:
                raise ConfigError(
                    f"stage '{self.name}': {key}={has.get(key)} contradicts the stages before it, from which "
                    f"{follows[key]} follows; change it there"
                )


@dataclass(frozen=True)
class Located:
    """A node with its fingerprint, which takes time to compute, and its artifact's folder in a run."""

    node: Node
    fingerprint: str
    folder: Path

    def link(self, run_dir: Path) -> None:
        """Point RUN_DIR/NAME at the artifact; a real file or folder in the way is left alone."""
        link = run_dir / self.node.name
        if link.is_symlink() or not link.exists():
            temporary = link.with_name(f".{link.name}.link")
            temporary.unlink(missing_ok=True)
            os.symlink(self.folder.relative_to(link.parent), temporary)
            os.replace(temporary, link)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def locate(nodes: Iterable[Node], run_dir: Path) -> dict[str, Located]:
    """Every node by name, in the given order, with each stage's fingerprint computed once."""
    known: dict[str, str] = {}
    return {
        node.name: Located(node, fingerprint, _folder(node, fingerprint, run_dir))
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
