"""Reading a YAML file of a user: what is wrong with it is one line with the file and the line.

Plain YAML lets the last of two equal keys win, so a line that a user added would silently replace another one, or be
replaced. Here that is an error.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, SequenceNode

from megatron_prism.errors import ConfigError

# Mappings inside mappings; a deeper file is no config, and one that contains itself never ends.
DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            # `<<` takes the keys of other mappings, which the mapping's own keys replace.
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise ConstructorError(None, None, f"the key '{key}' stands twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping.

    Raises:
        ConfigError: names a file that is missing, not YAML, or not a mapping, and the line at fault.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: not readable YAML ({str(problem).splitlines()[0]})") from None
    too_deep = f"{path}: the YAML is nested too deeply for a config"
    try:
        # The loader is SafeLoader's with one more check.
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigError(f"{path}{where}: not readable YAML ({_reason(problem)})") from None
    except yaml.YAMLError as problem:
        raise ConfigError(f"{path}: not readable YAML ({str(problem).splitlines()[0]})") from None
    except RecursionError:
        raise ConfigError(too_deep) from None
    except ValueError as problem:
        # A date such as 2026-13-45.
        raise ConfigError(f"{path}: not readable YAML ({problem})") from None
    if data is None:
        raise ConfigError(f"{path}: the file is empty; expected KEY: VALUE lines")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected KEY: VALUE lines at the top level, found {type(data).__name__}")
    if _depth(data, DEEPEST) > DEEPEST:
        raise ConfigError(too_deep)
    return data


def key_lines(path: Path) -> dict[tuple[str | int, ...], int]:
    """The line of every key of a file that `load_yaml` accepts: its path of keys and list numbers -> line, from 1."""
    found: dict[tuple[str | int, ...], int] = {}

    def walk(node: Node | None, place: tuple[str | int, ...]) -> None:
        if isinstance(node, MappingNode):
            for key, value in node.value:
                inside = (*place, str(key.value))
                found[inside] = key.start_mark.line + 1
                walk(value, inside)
        elif isinstance(node, SequenceNode):
            for number, value in enumerate(node.value):
                found[*place, number] = value.start_mark.line + 1
                walk(value, (*place, number))

    walk(yaml.compose(Path(path).read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader), ())
    return found


def _reason(problem: yaml.MarkedYAMLError) -> str:
    reason = problem.problem or problem.context or "not YAML"
    if "'\\t'" in reason:
        return "a tab; YAML is indented with spaces"
    return reason.replace("\n", " ")


def _depth(data: Any, limit: int) -> int:
    """The number of mappings and lists inside each other, counted up to one more than `limit`."""
    if limit < 0 or not isinstance(data, dict | list):
        return 0
    values = data.values() if isinstance(data, dict) else data
    return 1 + max((_depth(value, limit - 1) for value in values), default=0)
