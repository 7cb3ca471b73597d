"""A recipe with every resolved value as one YAML file, and the graph that such a file describes.

    recipe: granite-3.3-8b
    parameters: {mixture: mcs, seed: 1, ...}
    stages:
      midtrain:
        kind: train
        inputs: {tokens: tokens, tokenizer: tokenizer, init: import}
        config: {steps: 25000, ...}

A file may leave out values of `config`; they are then the recipe's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import flat, from_mapping, to_mapping
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.node import Node
from megatron_prism.pipeline.yaml_file import load_yaml
from megatron_prism.study.registry import Recipe

HEAD = "# Every value of this recipe. Run it with: prism run {name} --from-yaml THIS_FILE [KEY=VALUE]...\n"


@dataclass
class _Saved:
    """The keys of a file."""

    recipe: str
    parameters: dict[str, Any]
    stages: dict[str, Any]


@dataclass
class _SavedStage:
    kind: str
    inputs: dict[str, str]
    config: dict[str, Any]


def save(path: Path, recipe: Recipe, graph: Graph) -> None:
    """Write the file for a graph that the recipe has made.

    Raises:
        ConfigError: if the file cannot be written.
    """
    data = {
        "recipe": recipe.name,
        "parameters": graph.parameters,
        "stages": {
            name: {"kind": node.stage.kind, "inputs": _inputs(node), "config": to_mapping(node.stage)}
            for name, node in graph.nodes.items()
        },
    }
    text = HEAD.format(name=recipe.name) + yaml.safe_dump(data, sort_keys=False, width=120)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"--to-yaml {path}: cannot write this file ({problem.strerror})") from None


def restore(
    path: Path, recipe: Recipe, values: Mapping[str, Any], *, target: str | None = None, planned: bool = False
) -> Graph:
    """The graph that a file describes, with `values` on top.

    Args:
        values: parameters and overrides, as for `Recipe.graph`; they win over the file.
        target, planned: see `Recipe.graph`.

    Raises:
        ConfigError: names the file, and what is wrong or does not fit today's recipe.
    """
    saved = from_mapping(_Saved, load_yaml(path), str(path))
    if saved.recipe != recipe.name:
        raise ConfigError(f"{path}: this is a file of recipe '{saved.recipe}', not of '{recipe.name}'")
    stages = {
        name: from_mapping(_SavedStage, _mapping(entry, f"{path}: stages.{name}"), f"{path}: stages.{name}")
        for name, entry in saved.stages.items()
    }
    own = {key: value for key, value in values.items() if key.partition(".")[0] in recipe.parameters}
    # The file may come from another machine, so a path that the user replaces need not exist.
    moved = {key: value for key, value in own.items() if key in recipe.paths and isinstance(value, str)}
    try:
        before = recipe.build({**saved.parameters, **moved}, planned=True)
        _check_structure(before, stages)
        overrides = _overrides(before, stages, [path for path in moved.values() if path])
    except ConfigError as problem:
        raise type(problem)(f"{path}: {problem}") from None
    graph = recipe.build({**saved.parameters, **own}, planned)
    kept = {key: value for key, value in overrides.items() if key.partition(".")[0] in graph.nodes}
    graph.override(kept)
    graph.override({key: value for key, value in values.items() if key not in own}, target, recipe.parameters)
    return graph


def _mapping(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected the keys kind, inputs and config, found {type(entry).__name__}")
    return entry


def _inputs(node: Node) -> dict[str, str]:
    return {key: parent.name for key, parent in node.inputs.items()}


def _check_structure(graph: Graph, stages: Mapping[str, _SavedStage]) -> None:
    """Compare the stages, their kinds and their inputs with the recipe of today."""
    found = []
    if only := [name for name in stages if name not in graph.nodes]:
        found.append(f"only the file has {', '.join(only)}")
    if only := [name for name in graph.nodes if name not in stages]:
        found.append(f"only the recipe has {', '.join(only)}")
    for name, saved in stages.items():
        node = graph.nodes.get(name)
        if node is not None and saved.kind != node.stage.kind:
            found.append(
                f"stage '{name}' is of kind {node.stage.kind} in the recipe, {saved.kind} in the file"
            )
        elif node is not None and saved.inputs != _inputs(node):
            found.append(f"stage '{name}' reads {_inputs(node)} in the recipe, {saved.inputs} in the file")
    if found:
        raise ConfigError(f"its stages are not those of today's recipe '{graph.name}': {'; '.join(found)}")


def _overrides(graph: Graph, stages: Mapping[str, _SavedStage], moved: Sequence[str]) -> dict[str, Any]:
    """The fewest overrides that turn the recipe's graph into the file's; `graph` has them afterwards.

    What follows from an earlier stage or from another value is not among them, so that it goes on following.

    Args:
        moved: paths that replace those of the file.
    """
    chosen: dict[str, Any] = {}
    for name, stage in stages.items():
        node = graph.node(name)
        saved = replace(stage, config=_with_moved(to_mapping(node.stage), stage.config, moved))
        implied = {} if node.implied is None else dict(node.implied(node.stage, saved.config))
        for wanted in (
            {key: value for key, value in _changes(node, saved).items() if key not in implied},
            None,
        ):
            # The second time, with the values that follow from the first ones in place.
            found = _changes(node, saved) if wanted is None else wanted
            if found:
                overrides = {f"{name}.{key}": value for key, value in found.items()}
                graph.override(overrides)
                chosen |= overrides
        if left := _changes(node, saved):
            key, value = next(iter(left.items()))
            raise ConfigError(
                f"stages.{name}.config.{key}={value!r} cannot replace {flat(to_mapping(node.stage)).get(key)!r}; "
                "remove the entry that is too many from the recipe"
            )
    return chosen


def _with_moved(now: Any, wanted: Any, moved: Sequence[str]) -> Any:
    """The file's values, but for paths in `moved`, which stay as they are in the stage `now`."""
    if isinstance(now, dict) and isinstance(wanted, dict):
        return {key: _with_moved(now.get(key), value, moved) for key, value in wanted.items()}
    items = now if isinstance(now, list) else [now]
    return now if any(isinstance(item, str) and _lies_in(item, moved) for item in items) else wanted


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    return any(Path(path).resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


def _changes(node: Node, saved: _SavedStage) -> dict[str, Any]:
    """Dotted key -> value of the file, where it differs from the stage's."""
    return dict(_differing("", to_mapping(node.stage), saved.config))


def _differing(prefix: str, now: Any, wanted: Any) -> list[tuple[str, Any]]:
    # A key with a dot in it cannot be part of a dotted key, so its mapping is replaced as a whole.
    if isinstance(now, dict) and isinstance(wanted, dict) and not any("." in str(key) for key in wanted):
        return [
            found
            for key, value in wanted.items()
            for found in (
                _differing(f"{prefix}.{key}" if prefix else str(key), now[key], value)
                if key in now
                else [(f"{prefix}.{key}" if prefix else str(key), value)]
            )
        ]
    return [] if now == wanted and type(now) is type(wanted) else [(prefix, wanted)]
