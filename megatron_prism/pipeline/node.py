"""A node of a graph: one stage with its place, and where its artifact lies."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from megatron_prism.pipeline.stage import Stage


@dataclass(eq=False)
class Node:
    """One stage in a graph, with the nodes whose artifacts it takes, by input name."""

    name: str
    stage: Stage
    inputs: dict[str, Node] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the stage and all before it; `locate` is for many nodes at once."""
        return _fingerprint(self, {})

    def folder(self, run_dir: Path) -> Path:
        return _folder(self, self.fingerprint, run_dir)


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
