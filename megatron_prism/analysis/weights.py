"""Several checkpoints against one, in a single pass over the base: how every sub-component of every tensor changed.

analysis/streaming.py reads the tensors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from megatron_prism.analysis.change import Change, changes, total
from megatron_prism.analysis.inputs import open_models
from megatron_prism.analysis.streaming import scan
from megatron_prism.conversion.weights import Weights
from megatron_prism.models.architecture import Architecture


@dataclass(frozen=True)
class TensorChange:
    """How one tensor of one model changed.

    Attributes:
        layer: the number in the tensor's Hugging Face name; None outside the layers.
        component: one of `models.components.COMPONENTS`.
        dtype: in which the other model stores it, such as 'bfloat16'.
        parts: sub-component -> its change, in the order of the rows.
    """

    tensor: str
    layer: int | None
    component: str
    shape: tuple[int, ...]
    dtype: str
    parts: dict[str, Change]

    @property
    def change(self) -> Change:
        """Of the whole tensor."""
        return total(self.parts.values())


@dataclass(frozen=True)
class ModelChange:
    """How one model differs from the base: its tensors, in the order of the layers.

    Attributes:
        stored_as: its dtypes, such as 'bfloat16' or 'bfloat16, float32'.
    """

    folder: Path
    stored_as: str
    tensors: list[TensorChange]


@dataclass(frozen=True)
class WeightChanges:
    """Each model against the base, and remarks for the user.

    Attributes:
        architecture: of the base.
        base_stored_as: the dtypes of the base, such as 'bfloat16'.
    """

    architecture: Architecture
    base_stored_as: str
    models: list[ModelChange]
    remarks: list[str]


def compare_weights(
    base: Path, others: Sequence[Path], progress: Callable[[int], None] = lambda nbytes: None
) -> WeightChanges:
    """Measure the change of every tensor from `base` to each of `others`: Hugging Face or Megatron folders.

    Args:
        progress: called with the number of bytes of the base that were read since the last call.

    Raises:
        ConfigError: if no other model is given, or one twice.
        CheckpointError: for a damaged folder, another architecture (naming the key), or a NaN or an infinite number,
            naming the folder and the tensor.
    """
    models, remarks = open_models(base, others)
    found: list[list[TensorChange]] = [[] for _ in others]
    measured = scan(models, lambda stored: _Changes(tuple(changes(stored[0], stored[1:]))), progress)
    for name, group in groupby(measured, key=lambda each: each[0].tensor):
        parts = list(group)
        first, _ = parts[0]
        for index, (model, tensors) in enumerate(zip(models[1:], found, strict=True)):
            tensors.append(
                TensorChange(
                    name,
                    first.layer,
                    first.component,
                    tuple(model.shapes[name]),
                    _dtype_name(model.dtypes[name]),
                    {piece.part: sums.models[index] for piece, sums in parts},
                )
            )
    changed = [
        ModelChange(model.path, stored_as(model), tensors)
        for model, tensors in zip(models[1:], found, strict=True)
    ]
    return WeightChanges(models[0].architecture, stored_as(models[0]), changed, remarks)


def stored_as(model: Weights) -> str:
    """The dtypes of a model's tensors, the most frequent first."""
    return ", ".join(_dtype_name(each) for each, _ in Counter(model.dtypes.values()).most_common())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class _Changes:
    """The change of some elements in each model. `+` joins two sets of elements."""

    models: tuple[Change, ...]

    def __add__(self, other: _Changes) -> _Changes:
        return _Changes(tuple(mine + theirs for mine, theirs in zip(self.models, other.models, strict=True)))

    @property
    def finite(self) -> bool:
        # A sum of finite squares of fp32 numbers is finite in fp64.
        return all(math.isfinite(each.base_squares + each.change_squares) for each in self.models)
