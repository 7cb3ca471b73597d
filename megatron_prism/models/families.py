"""The registry of model families: the parameter names and the config of each.

A new family is one module with `rules`, `to_config`, `from_config` and `PUBLISHED`, and one line here. An installed
package can also add one, by an entry point of the group `megatron_prism.families` (examples/new_family).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import CheckpointError, ConfigError, suggest
from megatron_prism.models import granite, granite_hybrid, llama, mistral, nemotron_h
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.hf_config import ConfigReader
from megatron_prism.models.mappings import Rule, Shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Family:
    """A family's parameter table and its Hugging Face config in both directions.

    Attributes:
        published: config.json of the released models, by Hugging Face name.
        for_comparison: config keys to set so that transformers' model computes the same as Megatron's.
        layers_per_hf_layer: the number of Megatron layers for one Hugging Face layer.
    """

    rules: Callable[[Architecture], list[Rule]]
    to_config: Callable[[Architecture], dict[str, Any]]
    from_config: Callable[[ConfigReader], Architecture]
    published: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    for_comparison: Mapping[str, Any] = field(default_factory=dict)
    layers_per_hf_layer: Callable[[Architecture], int] = lambda architecture: 1


FAMILIES = {
    "llama": Family(llama.rules, llama.to_config, llama.from_config, llama.PUBLISHED),
    "mistral": Family(mistral.rules, mistral.to_config, mistral.from_config, mistral.PUBLISHED),
    "granite": Family(granite.rules, granite.to_config, granite.from_config, granite.PUBLISHED),
    "granitemoehybrid": Family(
        granite_hybrid.rules,
        granite_hybrid.to_config,
        granite_hybrid.from_config,
        granite_hybrid.PUBLISHED,
        layers_per_hf_layer=lambda architecture: 2 if architecture.is_hybrid else 1,
    ),
    "nemotron_h": Family(
        nemotron_h.rules,
        nemotron_h.to_config,
        nemotron_h.from_config,
        nemotron_h.PUBLISHED,
        for_comparison={"time_step_min": nemotron_h.NO_CLAMP},
    ),
}


PLUGINS = "megatron_prism.families"


def family(name: str) -> Family:
    """The family with this name, which is transformers' `model_type`.

    Raises:
        ConfigError: with the known names, if there is none; or if the package that has it cannot be loaded.
    """
    return FAMILIES[name] if name in FAMILIES else _installed_family(name)


def supported_families() -> list[str]:
    """The names of all families, of this package and of installed ones."""
    return sorted({*FAMILIES, *entry_points(group=PLUGINS).names})


@cache
def _installed_family(name: str) -> Family:
    """The family of an installed package, which is loaded when its name is first asked for."""
    points = list(entry_points(group=PLUGINS, name=name))
    if not points:
        raise ConfigError(
            f"model_type={name!r} is not supported; supported: {', '.join(supported_families())}"
        )
    point, *others = points
    if others:
        raise ConfigError(
            f"model_type={name!r}: several installed packages have this family: {point.value}, "
            f"{', '.join(other.value for other in others)}; remove all but one"
        )
    try:
        found = point.load()
    except Exception as problem:
        # Any error of a foreign module; its own traceback would hide which package it is about.
        raise ConfigError(
            f"model_type={name!r}: the installed package has no family at {point.value}: {problem}"
        ) from problem
    if not isinstance(found, Family):
        raise ConfigError(f"model_type={name!r}: {point.value} is {type(found).__name__}, and not a Family")
    return found


def parameter_map(architecture: Architecture) -> list[Rule]:
    """Every Megatron parameter with its Hugging Face names and layout."""
    return family(architecture.family).rules(architecture)


def hf_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every tensor of the Hugging Face checkpoint with its shape, in the order of the layers."""
    return {
        name: shape
        for rule in parameter_map(architecture)
        for name, shape in zip(rule.hf, rule.layout.hf_shapes(architecture), strict=True)
    }


def parameter_count(architecture: Architecture) -> int:
    """Parameters of the whole model, tied ones once."""
    return sum(math.prod(shape) for shape in hf_shapes(architecture).values())


def hf_config(architecture: Architecture) -> dict[str, Any]:
    """The contents of `config.json`, without token ids and dtype."""
    return family(architecture.family).to_config(architecture)


def architecture_from_config(config: Mapping[str, Any], remarks: list[str] | None = None) -> Architecture:
    """The architecture that a Hugging Face `config.json` describes.

    Args:
        remarks: a list to which remarks for the user are added, such as which of two spellings was read.

    Raises:
        ConfigError: for a family that is not supported, a missing key, a value of the wrong type, or a key whose
            meaning is not implemented.
    """
    if config.get("quantization_config"):
        raise ConfigError(
            "config.json: quantization_config: a quantized model cannot be read; use the original"
        )
    if not isinstance(config.get("model_type"), str):
        raise ConfigError(
            f"config.json: model_type={config.get('model_type')!r}: must be the name of a family; supported: "
            f"{', '.join(supported_families())}"
        )
    name = str(config["model_type"])
    try:
        from_config = family(name).from_config
    except ConfigError as problem:
        raise ConfigError(f"config.json: {problem}") from None
    read = ConfigReader(config, name)
    architecture = from_config(read)
    read.finish()
    if remarks is not None:
        remarks += read.remarks
    return architecture


def published_config(name: str) -> dict[str, Any]:
    """config.json of a released model, by its Hugging Face name. A ConfigError suggests the nearest known name."""
    known = {model: config for each in FAMILIES.values() for model, config in each.published.items()}
    if name not in known:
        raise ConfigError(f"'{name}' is not a model with a stored config{suggest(name, known)}")
    return dict(known[name])


def to_hf(architecture: Architecture, megatron_state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whole Megatron weights to Hugging Face names and shapes.

    Raises:
        CheckpointError: if a parameter is missing or unexpected.
    """
    unused = {name for name in megatron_state if not name.endswith("_extra_state")}
    converted: dict[str, Tensor] = {}
    for rule in parameter_map(architecture):
        tensor = _take(megatron_state, rule.megatron)
        unused.discard(rule.megatron)
        converted |= dict(zip(rule.hf, rule.to_hf(tensor, architecture), strict=True))
    if unused:
        raise CheckpointError(f"parameter '{min(unused)}' is not part of family '{architecture.family}'")
    return converted


def from_hf(architecture: Architecture, hf_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face weights to whole Megatron weights; raises CheckpointError as `to_hf` does."""
    unused = set(hf_state)
    converted = {}
    for rule in parameter_map(architecture):
        tensors = [_take(hf_state, name) for name in rule.hf]
        unused.difference_update(rule.hf)
        converted[rule.megatron] = rule.to_megatron(tensors, architecture)
    if unused:
        raise CheckpointError(f"parameter '{min(unused)}' is not part of family '{architecture.family}'")
    return converted


def _take(state: Mapping[str, Any], name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"parameter '{name}' is missing{suggest(name, state)}")
    tensor: Tensor = state[name]
    return tensor
