"""Every sub-component of every tensor of several models, read side by side in blocks: what analyses of updates share.

Memory holds a few blocks of each model. A Megatron checkpoint whose shards split columns is the exception: one tensor
of it is in memory at a time.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from megatron_prism.conversion.torch_dist.reader import quick_collection
from megatron_prism.conversion.weights import MegatronWeights, Weights
from megatron_prism.errors import CheckpointError
from megatron_prism.merging.blocks import Block, OpenFiles, Scratch, TensorBytes, Workers, blocks
from megatron_prism.models.components import COMPONENTS, tensor_parts

LAYER = re.compile(r"\.layers\.(\d+)\.")


class Sums(Protocol):
    """What is found in one block. `+` joins the findings of several blocks."""

    def __add__(self, other: Any) -> Any: ...

    @property
    def finite(self) -> bool:
        """Whether no element of any model is NaN or infinite."""
        ...


SumsT = TypeVar("SumsT", bound=Sums)


@dataclass(frozen=True)
class Piece:
    """A sub-component of one tensor: `shape[0]` of its rows, from `row` on.

    Attributes:
        layer: the number in the tensor's Hugging Face name; None outside the layers.
        component: one of `models.components.COMPONENTS`.
        part: the sub-component, such as "q".
        shape: of the piece; a vector has one number.
    """

    tensor: str
    layer: int | None
    component: str
    part: str
    row: int
    shape: tuple[int, ...]

    @property
    def sub_component(self) -> str:
        """The name in documents, such as "attention.q"."""
        return f"{self.component}.{self.part}"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def first(self) -> int:
        """The element of the flattened tensor at which the piece begins."""
        return self.row * math.prod(self.shape[1:])


def pieces(model: Weights) -> list[Piece]:
    """The sub-components of all tensors, in the order of the layers."""
    found = []
    for name, parts in tensor_parts(model.architecture).items():
        number = LAYER.search(name)
        layer = int(number[1]) if number else None
        rest = tuple(model.shapes[name][1:])
        for part in parts.parts:
            shape = (part.rows, *rest)
            found.append(Piece(name, layer, parts.component, part.name, part.row, shape))
    return found


def scan(
    models: Sequence[Weights],
    work: Callable[[Sequence[Tensor]], SumsT],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Iterator[tuple[Piece, SumsT]]:
    """The findings of every piece, in the order of the layers. The files are read once.

    Args:
        work: called with a flat block of every model in the dtypes in which they are stored; the
            blocks are valid during the call.
        progress: called with the number of bytes of the first model that were read since the last call.

    Raises:
        CheckpointError: naming the folder, the tensor and the row of a NaN or an infinite number.
    """
    with (
        OpenFiles(os.O_RDONLY) as files,
        # A second thread makes it slower: calls of numpy and torch take microseconds, and both wait for Python's lock.
        Workers(len(models), threads=1) as workers,
        quick_collection() if any(isinstance(each, MegatronWeights) for each in models) else nullcontext(),
    ):
        name, opened = "", list[TensorBytes]()

        def one(scratch: Scratch, block: Block) -> SumsT:
            stored = scratch.read_stored(opened, block)
            sums = work(stored)
            if not sums.finite:
                columns = math.prod(models[0].shapes[block.name][1:])
                check_finite(models, stored, block.name, first=block.first, columns=columns)
            return sums

        for piece in pieces(models[0]):
            if piece.tensor != name:
                for model in models:
                    model.release()
                name = piece.tensor
                opened = [TensorBytes(model, name, files) for model in models]
            total = None
            for found in workers.map(one, blocks(name, piece.first, piece.elements)):
                total = found if total is None else total + found
            assert total is not None, f"'{name}' has no elements"
            progress(piece.elements * models[0].dtypes[name].itemsize)
            yield piece, total


@dataclass(frozen=True)
class _Finite:
    finite: bool

    def __add__(self, other: _Finite) -> _Finite:
        return _Finite(self.finite and other.finite)


def check_weights(model: Weights) -> None:
    """Raise a CheckpointError that names the first tensor of a model with a NaN or an infinite number."""
    for _ in scan([model], lambda stored: _Finite(bool(torch.isfinite(stored[0]).all()))):
        pass


def check_finite(
    models: Sequence[Weights], stored: Sequence[Tensor], name: str, *, first: int, columns: int
) -> None:
    """Raise a CheckpointError that names the first NaN or infinite number of a block.

    Args:
        stored: the block of each model, flat.
        first: the element of tensor `name` at which the block begins.
        columns: elements of one row.
    """
    for model, tensor in zip(models, stored, strict=True):
        wrong = (~torch.isfinite(tensor)).nonzero()
        if len(wrong):
            place = int(wrong[0])
            raise CheckpointError(
                f"{model.path}: tensor '{name}' holds {float(tensor[place])} in row {(first + place) // columns}; "
                "no sum over it is a number: repair this model or leave it out"
            )


def by_group(found: Sequence[Piece], measure: Callable[[list[int]], Any]) -> dict[str, Any]:
    """Measure all pieces, and those of each component, sub-component and layer.

    Args:
        measure: is given the indices of some of the pieces.

    Returns:
        "all"; "components": component -> measure; "sub_components": such as "attention.q" -> measure; and "layers":
        one entry each, with its number as "layer", and component -> measure.
    """
    places = {
        component: [i for i, p in enumerate(found) if p.component == component] for component in COMPONENTS
    }
    present = {component: indices for component, indices in places.items() if indices}
    parts = dict[str, list[int]]()
    layers = dict[int, dict[str, list[int]]]()
    for component, indices in present.items():
        for index in indices:
            piece = found[index]
            parts.setdefault(piece.sub_component, []).append(index)
            if piece.layer is not None:
                layers.setdefault(piece.layer, {}).setdefault(component, []).append(index)

    def each(groups: Mapping[str, list[int]]) -> dict[str, Any]:
        return {name: measure(indices) for name, indices in groups.items()}

    return {
        "all": measure(list(range(len(found)))),
        "components": each(present),
        "sub_components": each(parts),
        "layers": [{"layer": layer, **each(layers[layer])} for layer in sorted(layers)],
    }
