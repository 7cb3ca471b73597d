"""The registry of model families: which table and which config a family name stands for.

A new family is one module with `rules`, `to_config` and `from_config`, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from megatron_prism.errors import CheckpointError, ConfigError, suggest
from megatron_prism.models import granite, nemotron_h
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.mappings import Rule


@dataclass(frozen=True)
class Family:
    """A family's parameter table and its Hugging Face config in both directions."""

    rules: Callable[[Architecture], list[Rule]]
    to_config: Callable[[Architecture], dict[str, Any]]
    from_config: Callable[[Mapping[str, Any]], Architecture]


FAMILIES = {
    "granite": Family(granite.rules, granite.to_config, granite.from_config),
    "nemotron_h": Family(nemotron_h.rules, nemotron_h.to_config, nemotron_h.from_config),
}


def family(name: str) -> Family:
    """The family of that name (also transformers' `model_type`); a ConfigError lists the known ones."""
    if name not in FAMILIES:
        raise ConfigError(f"family={name!r}: unknown{suggest(name, FAMILIES)}")
    return FAMILIES[name]


def parameter_map(architecture: Architecture) -> list[Rule]:
    """Every Megatron parameter with its Hugging Face names and transform."""
    return family(architecture.family).rules(architecture)


def hf_config(architecture: Architecture) -> dict[str, Any]:
    """The contents of `config.json`, without token ids and dtype."""
    return family(architecture.family).to_config(architecture)


def architecture_from_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a Hugging Face `config.json` describes."""
    try:
        return family(str(config.get("model_type"))).from_config(config)
    except KeyError as missing:
        raise ConfigError(f"config.json: no key {missing}, which {config['model_type']} needs") from None


def to_hf(architecture: Architecture, megatron_state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whole Megatron weights to Hugging Face names and shapes.

    Raises:
        CheckpointError: when a parameter is missing, or one would be left behind.
    """
    left = {name for name in megatron_state if not name.endswith("_extra_state")}
    converted: dict[str, Tensor] = {}
    for rule in parameter_map(architecture):
        tensor = _take(megatron_state, rule.megatron)
        left.discard(rule.megatron)
        converted |= dict(zip(rule.hf, rule.transform.to_hf(tensor, architecture), strict=True))
    if left:
        raise CheckpointError(f"parameter '{min(left)}' has no place in family '{architecture.family}'")
    return converted


def from_hf(architecture: Architecture, hf_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face weights to whole Megatron weights; raises CheckpointError as `to_hf` does."""
    left = set(hf_state)
    converted = {}
    for rule in parameter_map(architecture):
        tensors = [_take(hf_state, name) for name in rule.hf]
        left.difference_update(rule.hf)
        converted[rule.megatron] = rule.transform.to_megatron(tensors, architecture)
    if left:
        raise CheckpointError(f"parameter '{min(left)}' has no place in family '{architecture.family}'")
    return converted


def _take(state: Mapping[str, Any], name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"parameter '{name}' is missing{suggest(name, state)}")
    tensor: Tensor = state[name]
    return tensor
