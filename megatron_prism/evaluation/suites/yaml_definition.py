"""Reads a suite file. Every fault is one line with the file, the line, the key and what to write instead.

Prompts contain dollar signs and braces, so the values do not go through OmegaConf, which would read `${x}` as a
reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.evaluation.suites.definition import (
    DOMAINS,
    GENERATED,
    GROUPS,
    ORDERS,
    READERS,
    BenchmarkDefinition,
    Choices,
    SuiteDefinition,
    check,
    unique,
)
from megatron_prism.evaluation.suites.filters import check_condition
from megatron_prism.pipeline.config import LARGEST_COUNT
from megatron_prism.pipeline.yaml_file import key_lines, load_yaml

SUFFIXES = (".yaml", ".yml")
SUITE_KEYS = ("name", "description", "benchmarks")
# A name is also the name of a file.
_NAME_SIGNS = frozenset("-_.")

# Takes a value and where it stands; returns it checked.
Reader = Callable[[Any, str], Any]


def packaged_suites() -> dict[str, Path]:
    """The suites that come with the package: name -> file."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def load_suite_definition(name_or_file: str | Path) -> SuiteDefinition:
    """A packaged suite by name, for example "reasoning", or a YAML file of the user.

    Raises:
        ConfigError: for an unknown name, or a fault of the file, with its line.
    """
    path = Path(name_or_file)
    if path.suffix not in SUFFIXES:
        known = packaged_suites()
        if str(name_or_file) not in known:
            raise ConfigError(
                f"suite '{name_or_file}': there is no such suite{suggest(str(name_or_file), known)} "
                "(or give the path of a .yaml file)"
            )
        path = known[str(name_or_file)]
    return _suite(path)


def _suite(path: Path) -> SuiteDefinition:
    data = load_yaml(path)
    lines = key_lines(path)

    def place(*keys: str | int) -> str:
        return f"{path}, line {lines[keys]}" if keys in lines else str(path)

    for key in data:
        if key not in SUITE_KEYS:
            raise ConfigError(f"{place(key)}: unknown key '{key}'{suggest(str(key), SUITE_KEYS)}")
    listed = data.get("benchmarks")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{place('benchmarks')}: 'benchmarks' must be a list with at least one benchmark")
    benchmarks = []
    for number, given in enumerate(listed):
        line = place("benchmarks", number)
        if not isinstance(given, dict):
            raise ConfigError(f"{line}: a benchmark must have KEY: VALUE lines, found {type(given).__name__}")

        def at(key: str, number: int = number, line: str = line) -> str:
            return place("benchmarks", number, key) if ("benchmarks", number, key) in lines else line

        benchmarks.append(_benchmark(given, at, path.resolve().parent))
    unique([each.name for each in benchmarks], str(path))
    return SuiteDefinition(
        name=_name(data.get("name", path.stem), place("name")),
        benchmarks=tuple(benchmarks),
        description=_text(data.get("description", " "), place("description")),
    )


def _benchmark(given: Mapping[str, Any], at: Callable[[str], str], folder: Path) -> BenchmarkDefinition:
    for key in given:
        if key not in BENCHMARK_KEYS:
            raise ConfigError(f"{at(str(key))}: unknown key '{key}'{suggest(str(key), BENCHMARK_KEYS)}")
    if "name" not in given:
        raise ConfigError(f"{at('name')}: a benchmark without 'name'")
    values = {key: BENCHMARK_KEYS[key](value, f"{at(key)}: '{key}'") for key, value in given.items()}
    if "file" in values and "files" in values:
        raise ConfigError(f"{at('files')}: file and files are the same; keep one of them")
    if "file" in values:
        values["files"] = values.pop("file")
    prompt = values.pop("prompt", {})
    values["prompts"] = {"": prompt} if isinstance(prompt, str) else prompt
    if "hub" not in values and "files" in values:
        values["files"] = tuple(str(folder / file) for file in values["files"])
    definition = BenchmarkDefinition(**values, where_written=at("name"))
    check(definition, at)
    return replace(definition, domain=definition.domain or DOMAINS.get(definition.kind, ""))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be text, found {_shown(value)}; put it in quotes")
    if not value:
        raise ConfigError(f"{where} is empty; remove the key or give a text")
    return value


def _name(value: Any, where: str) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value, where)
    if text.startswith(".") or not all(sign.isalnum() or sign in _NAME_SIGNS for sign in text):
        raise ConfigError(f"{where} must be letters, digits, '-', '_' and '.', found '{text}'")
    return text


def _one_of(allowed: Sequence[str]) -> Reader:
    def read(value: Any, where: str) -> str:
        if value not in allowed:
            raise ConfigError(f"{where} is {_shown(value)}{suggest(str(value), allowed)}")
        return str(value)

    return read


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ConfigError(f"{where} is an empty list; remove the key")
    return tuple(_text(each, where) for each in values)


def _columns(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where} must be a mapping, for example {{question: problem}}, found {_shown(value)}"
        )
    return {_text(key, where): _text(column, f"{where}: '{key}'") for key, column in value.items()}


def _prompt(value: Any, where: str) -> str | dict[str, str]:
    if isinstance(value, dict):
        return {str(key): _text(text, f"{where}: '{key}'") for key, text in value.items()}
    return _text(value, where)


def _where(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping, for example {{level: [4, 5]}}, found {_shown(value)}")
    return {
        str(column): check_condition(condition, f"{where}: '{column}'") for column, condition in value.items()
    }


def _choices(value: Any, where: str) -> Choices:
    readers: dict[str, Reader] = {
        "right": _text,
        "wrong": _texts,
        "order": _one_of(ORDERS),
        "seed": _count(0),
    }
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping with right and wrong, found {_shown(value)}")
    for key in value:
        if key not in readers:
            raise ConfigError(f"{where}: unknown key '{key}'{suggest(str(key), readers)}")
    for key in ("right", "wrong"):
        if key not in value:
            raise ConfigError(
                f"{where}: '{key}' is missing; choices have right: COLUMN and wrong: [COLUMN, ...]"
            )
    return Choices(**{key: readers[key](part, f"{where}: '{key}'") for key, part in value.items()})


def _count(least: int) -> Reader:
    def read(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_COUNT:
            raise ConfigError(f"{where} must be a whole number of at least {least}, found {_shown(value)}")
        return value

    return read


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where} must be a number, found {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}" if isinstance(value, list | dict) else repr(value)


BENCHMARK_KEYS: dict[str, Reader] = {
    "name": _name,
    "group": _one_of(GROUPS),
    "domain": _one_of(sorted(set(DOMAINS.values()))),
    "hub": _text,
    "revision": _text,
    "files": _texts,
    "file": _texts,
    "generated": _one_of(GENERATED),
    "licence": _text,
    "reader": _one_of(READERS),
    "columns": _columns,
    "where": _where,
    "limit": _count(1),
    "choices": _choices,
    "kind": _one_of(tuple(DOMAINS)),
    "rules": _text,
    "prompt": _prompt,
    "prompt_by": _text,
    "stop": _texts,
    "samples": _count(1),
    "temperature": _number,
    "top_p": _number,
    "max_new_tokens": _count(1),
    "problems": _count(1),
}
