"""Configs are dataclasses that check themselves; dotted overrides and YAML change them through OmegaConf.

The error for an unknown key suggests the nearest known one; the error for a wrong type names the key and the type.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_prism.errors import ConfigError, suggest

T = TypeVar("T")
# Tensors hold 64-bit integers.
LARGEST_INTEGER = 2**63
# The largest count, size or length of a config, unless its field says otherwise: no run needs more, and loops and
# buffers of more would never end or never fit.
LARGEST_COUNT = 2**31 - 1
# Seeds may be hashes of other numbers.
LARGEST_SEED = LARGEST_INTEGER - 1


def parse_override(text: str) -> tuple[str, Any]:
    """'train.lr=3e-5' -> ('train.lr', 3e-05). The value is YAML, so lists and booleans work.

    Raises:
        ConfigError: if there is no '=', no key, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override '{text}': expected key=value, for example seed=7")
    try:
        parsed = OmegaConf.from_dotlist([f"value={value}"])
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError):
        raise ConfigError(f"override '{text}': the value is not valid YAML") from None
    return key.strip(), OmegaConf.to_container(parsed)["value"]  # type: ignore[index, call-overload]


def apply_overrides(config: T, overrides: Mapping[str, Any], where: str = "") -> T:
    """A copy of the dataclass `config` with dotted keys replaced.

    Args:
        config: any dataclass instance whose fields OmegaConf can hold.
        overrides: dotted key -> value, or nested mappings.
        where: how an error names the config, for example "stage 'midtrain'".

    Raises:
        ConfigError: for an unknown key (nearest suggested), a wrong type, or a value the dataclass refuses.
    """
    node = OmegaConf.structured(config)
    prefix = f"{where}: " if where else ""
    for key, value in overrides.items():
        check_key(node, key, prefix)
        try:
            OmegaConf.update(node, key, value, merge=True)
        except OmegaConfBaseException as problem:
            unknown = getattr(problem, "full_key", None)
            if "not in" in str(problem) and unknown:
                check_key(node, str(unknown), prefix)
            raise ConfigError(f"{prefix}{key}={value!r}: {_plain_reason(problem)}") from None
        stored = OmegaConf.select(node, key)
        stored = OmegaConf.to_container(stored) if OmegaConf.is_config(stored) else stored
        if reason := _bent(value, stored):
            raise ConfigError(f"{prefix}{key}={value!r}: {reason}")
    return to_object(node, prefix)


def _bent(given: Any, stored: Any) -> str:
    """Why OmegaConf should not have made `stored` of `given`: a number is neither a truth value nor an item of text."""
    if isinstance(given, Mapping) and isinstance(stored, Mapping):
        pairs = [(given[key], stored[key]) for key in given if key in stored]
        return next((reason for pair in pairs if (reason := _bent(*pair))), "")
    if isinstance(given, list) and isinstance(stored, list):
        pairs = list(zip(given, stored, strict=True))
        if any(isinstance(now, str) and not isinstance(before, str) for before, now in pairs):
            return "must be a list of texts"
        return next((reason for pair in pairs if (reason := _bent(*pair))), "")
    if isinstance(stored, bool) and type(given) is int:
        return "must be true or false"
    if isinstance(stored, int) and abs(stored) >= LARGEST_INTEGER:
        return f"must be below {LARGEST_INTEGER}"
    return ""


def to_object(node: DictConfig, prefix: str = "") -> Any:
    """The dataclass of a structured node; a ValueError from its `__post_init__` becomes a ConfigError."""
    try:
        return OmegaConf.to_object(node)
    except ConfigError as problem:
        raise type(problem)(f"{prefix}{problem}") from None
    except (OmegaConfBaseException, ValueError, TypeError) as problem:
        raise ConfigError(f"{prefix}{str(problem).splitlines()[0]}") from None


def check_key(node: DictConfig, key: str, prefix: str = "") -> None:
    """Raise a ConfigError with the nearest key unless the dotted `key` exists in `node`."""
    current: Any = node
    walked: list[str] = []
    for part in key.split("."):
        if not isinstance(current, DictConfig):
            raise ConfigError(f"{prefix}unknown key '{key}': '{'.'.join(walked)}' is a value and has no keys")
        # A free-form mapping (typed dict[str, X]) takes any key; a dataclass only its fields.
        if OmegaConf.get_type(current) is not dict and part not in list(current):
            raise ConfigError(f"{prefix}unknown key '{key}'{suggest(part, map(str, current))}")
        walked.append(part)
        # `in` and `get` treat a mandatory field without a value as absent, although its name is valid.
        current = current.get(part) if part in current else None
        if current is None:
            return


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build dataclass `cls` from plain data (a receipt, a task file, YAML), with the same checks as overrides."""
    prefix = f"{where}: " if where else ""
    node = OmegaConf.structured(cls)
    for key in values:
        check_key(node, str(key), prefix)
    try:
        merged = OmegaConf.merge(node, dict(values))
    except OmegaConfBaseException as problem:
        key = f"{problem.full_key}={problem.value!r}: " if problem.full_key else ""
        raise ConfigError(f"{prefix}{key}{_plain_reason(problem)}") from None
    assert isinstance(merged, DictConfig)
    return to_object(merged, prefix)


# Part of a message of OmegaConf -> what the value must be.
WRONG_TYPES = {
    "could not be converted to Integer": "must be a whole number",
    "could not be converted to Float": "must be a number",
    "is not a valid bool": "must be true or false",
    "is not a ListConfig": "must be a list, for example [a, b]",
    "to Dict[": "must be a mapping, for example {a: 1}",
    "is not Optional": "must have a value",
    "is not a subclass of": "is a group of keys; set one of them",
}


def _plain_reason(problem: OmegaConfBaseException) -> str:
    """OmegaConf's message about a wrong type, in a user's terms."""
    message = str(problem).splitlines()[0]
    return next((reason for part, reason in WRONG_TYPES.items() if part in message), message)


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as JSON-ready data (paths become strings)."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    return {str(key): _jsonable(value) for key, value in dict(container).items()}  # type: ignore[arg-type]


def changed_fields(config: Any) -> dict[str, Any]:
    """Dotted key -> value of the fields of a dataclass that have no default, or another value than their default."""
    found: dict[str, Any] = {}
    for each, value in ((each, getattr(config, each.name)) for each in dataclasses.fields(config)):
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        if not dataclasses.is_dataclass(value):
            if value != default:
                found[each.name] = _jsonable(value)
            continue
        if dataclasses.is_dataclass(default):
            before = flat(to_mapping(default))
            changed = {
                key: new for key, new in flat(to_mapping(value)).items() if before.get(key, value) != new
            }
        else:
            changed = changed_fields(value)
        found |= {f"{each.name}.{key}": new for key, new in changed.items()}
    return found


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    merged: dict[str, Any] = {}
    for key, value in values.items():
        merged |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return merged


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def one_of(value: str, allowed: Iterable[str], key: str) -> None:
    """For `__post_init__`: raise a ConfigError for a value outside `allowed`, with the nearest one."""
    choices = list(allowed)
    if value not in choices:
        raise ConfigError(f"{key}={value!r} is not possible{suggest(value, choices)}")


def positive(config: Any, *names: str, most: float = LARGEST_COUNT, group: str = "") -> None:
    """For `__post_init__`: raise a ConfigError unless the named fields are greater than zero, and at most `most`.

    Args:
        group: the key of `config` in the stage, for the message.
    """
    for name in names:
        value = getattr(config, name)
        # In this form the comparison also fails for NaN.
        if value is None or not 0 < value < math.inf:
            raise ConfigError(f"{_key(group, name)}={value}: must be a finite number greater than zero")
        _at_most(value, most, _key(group, name))


def not_negative(config: Any, *names: str, most: float = LARGEST_COUNT, group: str = "") -> None:
    """For `__post_init__`: raise a ConfigError unless the named fields are between zero and `most`; see `positive`."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"{_key(group, name)}={value}: must be a finite number of at least zero")
        _at_most(value, most, _key(group, name))


def seeds(config: Any, *names: str, most: int = LARGEST_SEED) -> None:
    """For `__post_init__`: raise a ConfigError unless the named fields are seeds that every generator accepts."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= most:
            raise ConfigError(f"{name}={value}: must be a whole number from 0 to {most}")


def _key(group: str, name: str) -> str:
    return f"{group}.{name}" if group else name


def _at_most(value: float, most: float, key: str) -> None:
    if value > most:
        raise ConfigError(f"{key}={value}: must be at most {most}")


def field_names(cls: type) -> list[str]:
    """The names of a dataclass's fields."""
    return [item.name for item in dataclasses.fields(cls)]
