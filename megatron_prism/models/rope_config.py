"""The rotary settings of a Hugging Face config: reads every spelling that transformers reads, and writes all of them.

transformers 5 has one block, `rope_parameters`, with all settings, and still reads the older `rope_scaling` and
`rope_theta`. transformers 4 reads only these two. Either block may contain `rope_theta` and may name its type
`rope_type` or `type`. Some numbers may be top-level keys instead. Source: transformers 5.23, modeling_rope_utils.py,
`convert_rope_params_to_dict`, `standardize_rope_params` and the validation and computation of each type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.hf_config import ConfigReader, as_number, shown
from megatron_prism.models.rope import NEEDED, OPTIONAL, RopeScaling

DEFAULT_THETA = 10000.0
THETA, NEW, OLD = "rope_theta", "rope_parameters", "rope_scaling"
ORIGINAL, PARTIAL = "original_max_position_embeddings", "partial_rotary_factor"
# Every key that may hold rotary settings.
ROPE_KEYS = (THETA, OLD, NEW, ORIGINAL, PARTIAL)

Rope = tuple[float, RopeScaling | None]


def read_rope(read: ConfigReader, max_position_embeddings: int) -> Rope:
    """The base (theta) and the scaling, as transformers 5 reads them. A remark names each value that is ignored.

    Args:
        max_position_embeddings: of this model; transformers uses it if the original length is missing.

    Raises:
        ConfigError: for two blocks that contradict each other, a type that is not implemented, or a value that
            transformers could not use.
    """
    outer_keys = _OuterKeys(
        theta=_theta(read.get(THETA), THETA) if read.get(THETA) is not None else None,
        theta_is_null=THETA in read and read.get(THETA) is None,
        partial=read.get(PARTIAL),
        original=read.get(ORIGINAL),
        positions=max_position_embeddings,
    )
    blocks = {name: block for name in (OLD, NEW) if (block := _block(read, name))}
    if not blocks:
        return _read_block(read, "config.json", {}, outer_keys)
    found = {name: _read_block(read, name, block, outer_keys) for name, block in blocks.items()}
    if len(found) > 1 and found[OLD] != found[NEW]:
        raise ConfigError(
            f"config.json: {NEW} ({_describe(found[NEW])}) and {OLD} ({_describe(found[OLD])}) differ; "
            "remove one of them"
        )
    # transformers 5 reads rope_scaling if both exist.
    return found[next(iter(found))]


def rope_to_config(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """All keys from which transformers 4 and 5 read rotary frequencies, with the same meaning."""
    numbers = {} if scaling is None else scaling.numbers()
    kind = "default" if scaling is None else scaling.rope_type
    return {
        THETA: theta,
        OLD: None if scaling is None else {"rope_type": kind, **numbers},
        NEW: {"rope_type": kind, THETA: theta, **numbers},
    }


@dataclass(frozen=True)
class _OuterKeys:
    """The values of the top-level keys, which are outside the blocks."""

    theta: float | None
    theta_is_null: bool
    partial: Any
    original: Any
    positions: int


def _block(read: ConfigReader, name: str) -> dict[str, Any]:
    value = read.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(
            f"config.json: {name}={shown(value)}: must be an object such as {{'rope_type': 'default'}}, or null"
        )
    return value


def _read_block(read: ConfigReader, name: str, block: Mapping[str, Any], outer_keys: _OuterKeys) -> Rope:
    theta = _block_theta(read, name, block, outer_keys)
    _refuse_partial(name, block.get(PARTIAL, 1.0))
    _refuse_partial("config.json", 1.0 if outer_keys.partial is None else outer_keys.partial)
    kind = _kind(name, block)
    numbers = {key: block[key] for key in block if key not in (THETA, PARTIAL, "rope_type", "type")}
    used = {} if kind == "default" else dict.fromkeys(NEEDED[kind]) | OPTIONAL[kind]
    ignored = {key: value for key, value in numbers.items() if key not in used}
    for key, value in ignored.items():
        if isinstance(value, dict | list):
            raise ConfigError(
                f"config.json: {name}: '{key}'={shown(value)} is not known for rope_type={kind!r} and could change the "
                "frequencies; remove it if it does not"
            )
    named = ", ".join(f"'{key}'={shown(value)}" for key, value in ignored.items() if value is not None)
    if named:
        read.remark(f"{name}: ignored, as in transformers: {named} (not used by rope_type={kind!r})")
    if kind == "default":
        return theta, None
    numbers = {key: value for key, value in numbers.items() if key in used}
    if ORIGINAL in used:
        numbers[ORIGINAL] = _original(read, name, kind, numbers, outer_keys=outer_keys)
    return theta, _scaling(name, kind, numbers, outer_keys)


def _block_theta(read: ConfigReader, name: str, block: Mapping[str, Any], outer_keys: _OuterKeys) -> float:
    """The theta of the block; if it has none, the top-level one, as in transformers 5."""
    if THETA in block:
        theta = _theta(block[THETA], f"{name}: {THETA}")
        if outer_keys.theta not in (None, theta):
            read.remark(
                f"{name}: its {THETA}={theta:g} is used and the top-level {THETA}={outer_keys.theta:g} is ignored, as "
                "in transformers 5; transformers 4 uses the top-level one"
            )
        return theta
    if outer_keys.theta_is_null:
        raise ConfigError(
            f"config.json: {THETA} is null; set a number, or remove the key for {DEFAULT_THETA:g}"
        )
    return DEFAULT_THETA if outer_keys.theta is None else outer_keys.theta


def _theta(value: Any, name: str) -> float:
    number = as_number(value)
    if number is None or not number > 1:
        raise ConfigError(f"config.json: {name}={shown(value)}: must be a number greater than 1")
    return number


def _refuse_partial(name: str, value: Any) -> None:
    if as_number(value) != 1.0:
        where = "" if name == "config.json" else f"{name}: "
        raise ConfigError(
            f"config.json: {where}{PARTIAL}={shown(value)} is not supported; only 1 is, which rotates every channel"
        )


def _kind(name: str, block: Mapping[str, Any]) -> str:
    kinds = [block[key] for key in ("rope_type", "type") if key in block]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise ConfigError(
            f"config.json: {name}: rope_type={shown(kinds[0])} and type={shown(kinds[1])} differ; remove one of them"
        )
    kind = kinds[0] if kinds else "default"
    if not isinstance(kind, str) or kind not in ("default", *NEEDED):
        supported = ", ".join(repr(each) for each in ("default", *sorted(NEEDED)))
        raise ConfigError(
            f"config.json: {name}: rope_type={shown(kind)} is not supported; supported: {supported}"
        )
    return kind


def _original(
    read: ConfigReader, name: str, kind: str, numbers: Mapping[str, Any], *, outer_keys: _OuterKeys
) -> Any:
    """The length before the scaling: from the block, from the top-level key, or the model's length."""
    inner, outer = numbers.get(ORIGINAL), outer_keys.original
    if ORIGINAL not in numbers and outer is None:
        read.remark(
            f"{name}: rope_type={kind!r} has no {ORIGINAL}; max_position_embeddings={outer_keys.positions} is used, as "
            "in transformers"
        )
        return outer_keys.positions
    if ORIGINAL in numbers and outer is not None and inner != outer:
        raise ConfigError(
            f"config.json: {ORIGINAL} is {shown(inner)} in {name}, but {shown(outer)} at the top level; remove one of "
            "them"
        )
    return outer if ORIGINAL not in numbers else inner


def _scaling(name: str, kind: str, numbers: Mapping[str, Any], outer_keys: _OuterKeys) -> RopeScaling:
    """The scaling of this type. A ConfigError names a number that is missing or wrong."""
    numbers = dict(numbers)
    for key in NEEDED[kind]:
        if key not in numbers:
            raise ConfigError(
                f"config.json: {name}: '{key}' is missing; rope_type={kind!r} needs {', '.join(NEEDED[kind])}"
            )
    if kind == "yarn":
        _fill_yarn_defaults(numbers, outer_keys.positions)
    # transformers reads a null as false, and an absent key as true.
    if not isinstance(numbers.get("truncate", True), bool):
        raise ConfigError(
            f"config.json: {name}: truncate={shown(numbers['truncate'])}: must be true or false"
        )
    for key, value in numbers.items():
        if key == "truncate" or (value is None and key in OPTIONAL[kind]):
            continue
        number = as_number(value)
        if number is None:
            raise ConfigError(
                f"config.json: {name}: {key}={shown(value)}: must be a number for rope_type={kind!r}"
            )
        numbers[key] = number
    if ORIGINAL in numbers:
        if numbers[ORIGINAL] != int(numbers[ORIGINAL]):
            raise ConfigError(f"config.json: {name}: {ORIGINAL}={numbers[ORIGINAL]}: must be a whole number")
        numbers[ORIGINAL] = int(numbers[ORIGINAL])
    try:
        return RopeScaling(rope_type=kind, **numbers)
    except ConfigError as problem:
        raise ConfigError(f"config.json: {problem}") from None


def _fill_yarn_defaults(numbers: dict[str, Any], positions: int) -> None:
    """As in transformers, replace zeros by the defaults, and a null factor by the ratio of the two lengths."""
    for key in ("beta_fast", "beta_slow"):
        if not isinstance(numbers.get(key), bool) and numbers.get(key) == 0:
            numbers[key] = None
    if as_number(numbers.get("mscale")) == 0 or as_number(numbers.get("mscale_all_dim")) == 0:
        # transformers uses them only if both are set.
        numbers["mscale"] = numbers["mscale_all_dim"] = None
    original = as_number(numbers[ORIGINAL])
    if numbers["factor"] is None and original:
        numbers["factor"] = positions / original


def _describe(rope: Rope) -> str:
    theta, scaling = rope
    numbers = {} if scaling is None else scaling.numbers()
    kind = "default" if scaling is None else scaling.rope_type
    return ", ".join([kind, f"{THETA}={theta:g}", *(f"{key}={value}" for key, value in numbers.items())])
