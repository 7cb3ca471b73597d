"""The models of an analysis, compared before any tensor is read: their tensors must have the same names and shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from megatron_prism.conversion.weights import Weights, open_weights
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import MAMBA_SIZES, SIZES, Architecture
from megatron_prism.models.model_folder import find_model

# Tensors depend on these fields. Models may differ in the others (a longer context, for example): a remark says so.
REQUIRED = tuple(
    name
    for name in (
        *("family", *SIZES, *MAMBA_SIZES),
        *("hybrid_pattern", "activation", "tie_word_embeddings"),
    )
    if name != "max_position_embeddings"
)


def open_models(base: Path, others: Sequence[Path]) -> tuple[list[Weights], list[str]]:
    """Open the folders, of either kind, the base first. Only headers are read.

    Returns:
        The models, and remarks for the user, one line each.

    Raises:
        ConfigError: if there is nothing to compare with, or a folder is given twice.
        CheckpointError: for a damaged folder, or one of another architecture, naming the key.
    """
    if not others:
        raise ConfigError(f"{base}: give two or more models; the first is the base of the others")
    given = [base.resolve()]
    for other in others:
        if other.resolve() == given[0]:
            raise ConfigError(f"{other}: is the base itself; give another model")
        if other.resolve() in given:
            raise ConfigError(f"{other}: given twice; every model must be another one")
        given.append(other.resolve())
    models: list[Weights] = [open_weights(find_model(path)) for path in (base, *others)]
    remarks = list(dict.fromkeys(each for model in models for each in model.remarks))
    first = models[0]
    for model in models[1:]:
        remarks += _compare(model.path, model.architecture, first.path, first.architecture)
        different = next(
            (name for name in first.dtypes if first.dtypes[name] is not model.dtypes[name]), None
        )
        if different is not None:
            remarks.append(
                f"{model.path}: '{different}' is {model.dtypes[different]}, but {first.dtypes[different]} in "
                f"{first.path}; a conversion alone changes weights by up to its rounding"
            )
    return models, remarks


def model_bytes(folder: Path) -> int:
    """The size of a model's tensors."""
    model = open_weights(find_model(folder))
    return sum(math.prod(shape) * model.dtypes[name].itemsize for name, shape in model.shapes.items())


def _compare(path: Path, mine: Architecture, base_path: Path, base: Architecture) -> list[str]:
    others = [each.name for each in dataclasses.fields(base) if each.compare and each.name not in REQUIRED]
    different = [name for name in (*REQUIRED, *others) if getattr(mine, name) != getattr(base, name)]
    stated = [
        f"{name}={getattr(mine, name)}, but {base_path} has {name}={getattr(base, name)}"
        for name in different
    ]
    if different and different[0] in REQUIRED:
        raise CheckpointError(f"{path}: {stated[0]}; only models of one architecture can be compared")
    return [f"{path}: {each}; their weights are compared all the same" for each in stated]
