"""The models of an analysis, compared before any tensor is read: their tensors must have the same names and shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_prism.analysis.main_weights import MainWeightReader
from megatron_prism.conversion.torch_dist.reader import CheckpointReader
from megatron_prism.conversion.weights import MegatronWeights, Weights, open_weights
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import MAMBA_SIZES, SIZES, Architecture
from megatron_prism.models.model_folder import CHECKPOINT, find_model, is_megatron
from megatron_prism.training.saved_state import RECORD, read_state

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
    given = [_own_folder(base)]
    for other in others:
        if _own_folder(other) == given[0]:
            raise ConfigError(f"{other}: is the base itself; give another model")
        if _own_folder(other) in given:
            raise ConfigError(f"{other}: given twice; every model must be another one")
        given.append(_own_folder(other))
    models = [open_model(path) for path in (base, *others)]
    remarks = list(dict.fromkeys(each for model in models for each in model.remarks))
    first = models[0]
    for model in models[1:]:
        remarks += _compare(model.path, model.architecture, first.path, first.architecture)
        different = next(
            (name for name in first.dtypes if first.dtypes[name] is not model.dtypes[name]), None
        )
        if different is not None and not _has_main_weights(model):
            remarks.append(
                f"{model.path}: '{different}' is {dtype_name(model.dtypes[different])}, but "
                f"{dtype_name(first.dtypes[different])} in {first.path}; if one was converted from the other, part "
                "of the change is rounding"
            )
    return models, remarks


def _own_folder(model: Path) -> Path:
    """One path for a model, however it is named: a link, or the checkpoint inside its folder."""
    found = model.resolve()
    return found.parent if found.name == CHECKPOINT else found


def open_model(folder: Path) -> Weights:
    """The weights of a model's folder, or of a training checkpoint such as RUN/STAGE/checkpoints/step_0000100.

    Where the checkpoint has the optimizer's fp32 copies of bf16 weights, these are read, and a remark says so.

    Raises:
        CheckpointError: for a folder that is neither, or is damaged.
    """
    folder = Path(folder)
    if (folder / RECORD).is_file():
        fields = read_state(folder).record.architecture
        if not fields:
            raise CheckpointError(f"{folder / RECORD}: names no architecture; give the stage's own folder")
        return _with_main_weights(folder, folder, Architecture.from_json(dict(fields), str(folder / RECORD)))
    found = find_model(folder)
    if not is_megatron(found):
        return open_weights(found)
    return _with_main_weights(found, found / CHECKPOINT, None)


def _with_main_weights(folder: Path, checkpoint: Path, architecture: Architecture | None) -> Weights:
    reader = MainWeightReader(checkpoint)
    stored = MegatronWeights(folder, architecture, CheckpointReader(checkpoint))
    if not reader.copies or set(stored.dtypes.values()) == {torch.float32}:
        return stored
    model = MegatronWeights(folder, architecture, reader)
    model.remarks.append(
        f"{folder}: read from the optimizer's fp32 weights, which show changes that bf16 rounds away"
    )
    return model


def dtype_name(dtype: torch.dtype) -> str:
    """Such as 'bfloat16'."""
    return str(dtype).removeprefix("torch.")


def _has_main_weights(model: Weights) -> bool:
    return isinstance(model, MegatronWeights) and isinstance(model.reader, MainWeightReader)


def model_bytes(folder: Path) -> int:
    """The size of a model's tensors."""
    model = open_model(folder)
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
