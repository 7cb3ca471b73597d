"""Several checkpoints against one, in a single pass over the base: how every sub-component of every tensor changed.

Tensors are read in blocks by the reader of `merging`, so memory holds a few blocks of each model. A Megatron
checkpoint whose shards split columns is the exception: one tensor of it is in memory at a time.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_prism.analysis.change import Change, changes, total
from megatron_prism.analysis.inputs import open_models
from megatron_prism.conversion.torch_dist.reader import quick_collection
from megatron_prism.conversion.weights import MegatronWeights, Weights
from megatron_prism.errors import CheckpointError
from megatron_prism.merging.blocks import Block, OpenFiles, Scratch, TensorBytes, Workers, blocks
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.components import Part, TensorParts, tensor_parts

LAYER = re.compile(r"\.layers\.(\d+)\.")


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
    with (
        OpenFiles(os.O_RDONLY) as files,
        Workers(len(models)) as workers,
        quick_collection() if any(isinstance(each, MegatronWeights) for each in models) else nullcontext(),
    ):
        for name, parts in tensor_parts(models[0].architecture).items():
            opened = [TensorBytes(model, name, files) for model in models]
            measured = _measure(name, parts, models=models, opened=opened, workers=workers)
            number = LAYER.search(name)
            for model, tensors, sums in zip(models[1:], found, measured, strict=True):
                tensors.append(
                    TensorChange(
                        name,
                        int(number[1]) if number else None,
                        parts.component,
                        tuple(model.shapes[name]),
                        _dtype_name(model.dtypes[name]),
                        sums,
                    )
                )
            progress(math.prod(models[0].shapes[name]) * models[0].dtypes[name].itemsize)
            for model in models:
                model.release()
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


def _measure(
    name: str,
    parts: TensorParts,
    *,
    models: Sequence[Weights],
    opened: Sequence[TensorBytes],
    workers: Workers,
) -> list[dict[str, Change]]:
    """Sub-component -> change, for each model after the base."""
    columns = math.prod(models[0].shapes[name][1:])
    tasks = [(part, block) for part in parts.parts for block in _part_blocks(name, part, columns)]

    def work(scratch: Scratch, block: Block) -> list[Change]:
        stored = scratch.read_stored(opened, block)
        sums = changes(stored[0], stored[1:])
        # A sum of finite squares of fp32 numbers is finite in fp64.
        if not all(math.isfinite(each.base_squares + each.change_squares) for each in sums):
            _raise_not_finite(models, stored, block, columns)
        return sums

    found: list[dict[str, Change]] = [{part.name: Change() for part in parts.parts} for _ in models[1:]]
    results = workers.map(work, [block for _, block in tasks])
    for (part, _), sums in zip(tasks, results, strict=True):
        for own, each in zip(found, sums, strict=True):
            own[part.name] += each
    return found


def _part_blocks(name: str, part: Part, columns: int) -> Iterator[Block]:
    return blocks(name, part.row * columns, part.rows * columns)


def _raise_not_finite(
    models: Sequence[Weights], stored: Sequence[Tensor], block: Block, columns: int
) -> None:
    for model, tensor in zip(models, stored, strict=True):
        wrong = (~torch.isfinite(tensor)).nonzero()
        if len(wrong):
            place = int(wrong[0])
            raise CheckpointError(
                f"{model.path}: tensor '{block.name}' holds {float(tensor[place])} in row "
                f"{(block.first + place) // columns}; no norm of it is a number: repair this model or leave it out"
            )
