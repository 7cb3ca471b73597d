"""The rotary settings of a Hugging Face config: reads every spelling that transformers reads, and writes all of them.

transformers 5 has one block, `rope_parameters`, with all settings, and still reads the older `rope_scaling` and
`rope_theta`. transformers 4 reads only these two. Either block may have `rope_theta`, may name its type `rope_type` or
`type`, and may leave some numbers to keys next to the block. Source: transformers 5.23, modeling_rope_utils.py,
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
    """theta and scaling, as transformers 5 reads them. A remark names each value that it ignores.

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
            f"config.json: {NEW} and {OLD} say different things ({_meaning(found[NEW])}; {_meaning(found[OLD])}); "
            "keep one"
        )
    # As in transformers 5: rope_scaling, if both exist.
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
    """The values of the keys next to the blocks."""

    theta: float | None
    theta_is_null: bool
    partial: Any
    original: Any
    positions: int


def _block(read: ConfigReader, name: str) -> dict[str, Any]:
    value = read.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(
            f"config.json: {name}={shown(value)}: an object such as {{'rope_type': 'default'}} or null is needed"
        )
    return value


def _read_block(read: ConfigReader, name: str, block: Mapping[str, Any], outer_keys: _OuterKeys) -> Rope:
    theta = _block_theta(read, name, block, outer_keys)
    _refuse_partial(name, block.get(PARTIAL, 1.0))
    _refuse_partial("config.json", 1.0 if outer_keys.partial is None else outer_keys.partial)
    kind = _kind(name, block)
    numbers = {key: block[key] for key in block if key not in (THETA, PARTIAL, "rope_type", "type")}
    wanted = {} if kind == "default" else dict.fromkeys(NEEDED[kind]) | OPTIONAL[kind]
    ignored = {key: value for key, value in numbers.items() if key not in wanted}
    for key, value in ignored.items():
        if isinstance(value, dict | list):
            raise ConfigError(
                f"config.json: {name}: '{key}'={shown(value)} is not known for rope_type={kind!r}; remove it if it "
                "changes nothing"
            )
    named = ", ".join(f"'{key}'={shown(value)}" for key, value in ignored.items() if value is not None)
    if named:
        read.remark(
            f"{name}: {named} not read: rope_type={kind!r} has no such number, in transformers neither"
        )
    if kind == "default":
        return theta, None
    given = {key: value for key, value in numbers.items() if key in wanted}
    if ORIGINAL in wanted:
        given[ORIGINAL] = _original(read, name, kind, given, outer_keys)
    return theta, _scaling(name, kind, given, outer_keys)


def _block_theta(read: ConfigReader, name: str, block: Mapping[str, Any], outer_keys: _OuterKeys) -> float:
    """The theta in the block; if it has none, the one next to the block, as in transformers 5."""
    if THETA in block:
        theta = _theta(block[THETA], f"{name}: {THETA}")
        if outer_keys.theta not in (None, theta):
            read.remark(
                f"{THETA}={outer_keys.theta:g} next to {name} is not read, {THETA}={theta:g} in it is, as in "
                "transformers 5; transformers 4 reads the other"
            )
        return theta
    if outer_keys.theta_is_null:
        raise ConfigError(f"config.json: {THETA} is null; give a number, or remove it for {DEFAULT_THETA:g}")
    return DEFAULT_THETA if outer_keys.theta is None else outer_keys.theta


def _theta(value: Any, name: str) -> float:
    number = as_number(value)
    if number is None or not number > 1:
        raise ConfigError(f"config.json: {name}={shown(value)}: a number greater than 1 is needed")
    return number


def _refuse_partial(name: str, value: Any) -> None:
    if as_number(value) != 1.0:
        where = "" if name == "config.json" else f"{name}: "
        raise ConfigError(
            f"config.json: {where}{PARTIAL}={shown(value)} is not supported: only 1, rotating whole heads, is"
        )


def _kind(name: str, block: Mapping[str, Any]) -> str:
    kinds = [block[key] for key in ("rope_type", "type") if key in block]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise ConfigError(
            f"config.json: {name}: rope_type={shown(kinds[0])} and type={shown(kinds[1])} are both named and differ"
        )
    kind = kinds[0] if kinds else "default"
    if not isinstance(kind, str) or kind not in ("default", *NEEDED):
        supported = ", ".join(repr(each) for each in ("default", *sorted(NEEDED)))
        raise ConfigError(f"config.json: {name}: rope_type={shown(kind)} is not supported; only {supported}")
    return kind


def _original(
    read: ConfigReader, name: str, kind: str, given: Mapping[str, Any], outer_keys: _OuterKeys
) -> Any:
    """The length before the scaling: from the block, from the key next to it, or the model's length."""
    inner, outer = given.get(ORIGINAL), outer_keys.original
    if ORIGINAL not in given and outer is None:
        read.remark(
            f"{name}: rope_type={kind!r} without {ORIGINAL}: {outer_keys.positions} is taken, "
            "max_position_embeddings, as transformers does"
        )
        return outer_keys.positions
    if ORIGINAL in given and outer is not None and inner != outer:
        raise ConfigError(
            f"config.json: {ORIGINAL} is {shown(inner)} in {name} and {shown(outer)} next to it; keep one"
        )
    return outer if ORIGINAL not in given else inner


def _scaling(name: str, kind: str, given: Mapping[str, Any], outer_keys: _OuterKeys) -> RopeScaling:
    """The scaling of this type; all required numbers exist."""
    numbers = dict(given)
    for key in NEEDED[kind]:
        if key not in numbers:
            raise ConfigError(
                f"config.json: {name}: rope_type={kind!r} needs {', '.join(NEEDED[kind])}; '{key}' is missing"
            )
    if kind == "yarn":
        _as_transformers_reads_yarn(numbers, outer_keys.positions)
    # To transformers a null here is false, and an absent key true.
    if not isinstance(numbers.get("truncate", True), bool):
        raise ConfigError(
            f"config.json: {name}: truncate={shown(numbers['truncate'])}: true or false is needed"
        )
    for key, value in numbers.items():
        if key == "truncate" or (value is None and key in OPTIONAL[kind]):
            continue
        number = as_number(value)
        if number is None:
            raise ConfigError(
                f"config.json: {name}: {key}={shown(value)} of rope_type={kind!r} is not a number"
            )
        numbers[key] = number
    if ORIGINAL in numbers:
        if numbers[ORIGINAL] != int(numbers[ORIGINAL]):
            raise ConfigError(f"config.json: {name}: {ORIGINAL}={numbers[ORIGINAL]} is not a whole number")
        numbers[ORIGINAL] = int(numbers[ORIGINAL])
    try:
        return RopeScaling(rope_type=kind, **numbers)
    except ConfigError as problem:
        raise ConfigError(f"config.json: {problem}") from None


def _as_transformers_reads_yarn(numbers: dict[str, Any], positions: int) -> None:
    """Zeros that mean the default, and a factor of null that means the ratio of the lengths."""
    for key in ("beta_fast", "beta_slow"):
        if not isinstance(numbers.get(key), bool) and numbers.get(key) == 0:
            numbers[key] = None
    if as_number(numbers.get("mscale")) == 0 or as_number(numbers.get("mscale_all_dim")) == 0:
        # One of the two alone has no effect.
        numbers["mscale"] = numbers["mscale_all_dim"] = None
    original = as_number(numbers[ORIGINAL])
    if numbers["factor"] is None and original:
        numbers["factor"] = positions / original


def _meaning(rope: Rope) -> str:
    theta, scaling = rope
    numbers = {} if scaling is None else scaling.numbers()
    kind = "default" if scaling is None else scaling.rope_type
    return ", ".join([kind, f"{THETA}={theta:g}", *(f"{key}={value}" for key, value in numbers.items())])
