"""The inputs of stages that compare the weights of models, by the labels that tables and figures show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.pipeline.artifact import Artifact


def check_labels(base: str, models: Sequence[str], least: int = 1) -> None:
    """Raise a ConfigError unless `models` names at least `least` different inputs, none of them the base."""
    if len(models) < least:
        raise ConfigError(f"models={list(models)}: name at least {least} inputs besides the base '{base}'")
    if base in models:
        raise ConfigError(f"models: '{base}' is the base; remove it here")
    for name in models:
        if models.count(name) > 1:
            raise ConfigError(f"models: '{name}' stands here twice")


def folders(inputs: Mapping[str, Artifact], labels: Sequence[str]) -> list[Path]:
    """The folders of the inputs with these labels; a ConfigError names one that the stage does not have."""
    for name in labels:
        if name not in inputs:
            raise ConfigError(f"models: this stage has no input '{name}'{suggest(name, inputs)}")
    return [inputs[name].path for name in labels]
