"""Reads optimizer state of the format 'dp_reshardable' for a layout with other buckets than it was saved with."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

from megatron_prism.errors import CheckpointError
from megatron_prism.models.checkpoint_io import FULLY_RESHARDABLE, read_checkpoint
from megatron_prism.training.optimizer_buckets import (
    Piece,
    distributed_parts,
    parameter_pieces,
    read_index,
)

STATES = ("param", "exp_avg", "exp_avg_sq")
Box = tuple[tuple[int, ...], tuple[int, ...]]


def read_resharded(optimizer: Any, sharded_model: Any, folder: Path) -> Any:
    """The state of this rank's parameters, wherever it was saved, for `adam_state.load_state`.

    Each rank reads only the parameters of which it owns a part.

    Args:
        sharded_model: the sharded weights of this rank.

    Raises:
        CheckpointError: if the checkpoint does not cover a parameter.
    """
    groups, saved = read_index(folder)
    by_key: dict[str, list[Piece]] = {}
    for piece in saved:
        by_key.setdefault(piece.key, []).append(piece)
    boxes = parameter_pieces(sharded_model)
    states: list[dict[int, dict[str, torch.Tensor]]] = []
    copies: list[_Copy] = []
    for part in distributed_parts(optimizer):
        owned = {}
        for number, parameter in _owned(part):
            tensors = {state: torch.zeros(parameter.numel()) for state in STATES}
            owned[number] = {state: tensor.view(parameter.shape) for state, tensor in tensors.items()}
            for start, key, offset, shape in boxes[parameter]:
                found = [
                    _Copy(piece, overlap, tensors, start=start, box=(offset, shape))
                    for piece in by_key.get(key, [])
                    if (overlap := _overlap((piece.offset, piece.shape), (offset, shape))) is not None
                ]
                if not found:
                    raise CheckpointError(f"{folder}: the checkpoint has no optimizer state of '{key}'")
                copies += found
        states.append(owned)
    request: dict[str, Any] = {f"group {key}": ShardedObject(key, None, (1,), (0,)) for key in groups}
    for number, each in enumerate(copies):
        request |= {f"{state} {number}": each.request(state) for state in STATES}
    loaded = read_checkpoint(request, folder, shared=True)
    for number, each in enumerate(copies):
        for state in STATES:
            each.fill(state, loaded[f"{state} {number}"])
    param_groups = [group for key in groups for group in loaded[f"group {key}"]["param_groups"]]
    found_states = [
        {
            "optimizer": {"param_groups": copy.deepcopy(param_groups)},
            "param_state": owned,
            "param_state_sharding_type": FULLY_RESHARDABLE,
        }
        for owned in states
    ]
    return found_states[0] if len(found_states) == 1 else dict(enumerate(found_states))


class _Copy:
    """The copy of the overlap of a saved piece and a box of a parameter of this rank.

    Args:
        overlap: offset and shape in the global tensor.
        tensors: the flat tensors of the parameter, by state.
        start: where the box begins in them.
        box: offset and shape of the box in the global tensor.
    """

    def __init__(
        self, piece: Piece, overlap: Box, tensors: dict[str, torch.Tensor], *, start: int, box: Box
    ) -> None:
        self.piece, self.overlap, self.tensors, self.start, self.box = piece, overlap, tensors, start, box
        # Of the saved piece only the rows of the overlap are read, along its first axis that is not of size 1.
        self.axis = next((axis for axis, size in enumerate(piece.shape) if size > 1), len(piece.shape) - 1)
        self.first = overlap[0][self.axis] - piece.offset[self.axis]
        self.rows = overlap[1][self.axis]
        self.row_size = math.prod(piece.shape[self.axis + 1 :])

    def request(self, state: str) -> ShardedTensor:
        return ShardedTensor(
            f"{self.piece.bucket}.{state}",
            None,
            torch.float32,
            (self.rows * self.row_size,),
            (self.piece.bucket_size,),
            (self.piece.start + self.first * self.row_size,),
            axis_fragmentations=None,
        )

    def fill(self, state: str, numbers: torch.Tensor) -> None:
        """Copy the numbers that were read for `request`."""
        shape = list(self.piece.shape)
        shape[self.axis] = self.rows
        offset = list(self.piece.offset)
        offset[self.axis] += self.first
        source = numbers.view(shape)[_window(self.overlap, offset)]
        size = math.prod(self.box[1])
        target = self.tensors[state][self.start : self.start + size].view(self.box[1])
        target[_window(self.overlap, self.box[0])].copy_(source)


def _owned(part: Any) -> Iterator[tuple[int, Any]]:
    """Number and parameter of those of which this data-parallel rank owns a part.

    The numbers are upstream's: over the parameters of all buffers (distrib_optimizer.py:2079).
    """
    numbers = itertools.count()
    for index, ranges in enumerate(part.gbuf_ranges):
        mine = {
            parameter for buckets in ranges.values() for each in buckets for parameter in each["param_map"]
        }
        for parameter in part.buffers[index].param_index_map:
            number = next(numbers)
            if parameter in mine:
                yield number, parameter


def _overlap(first: Box, second: Box) -> Box | None:
    low = tuple(map(max, first[0], second[0]))
    ends = [
        min(start + size, other + length) for start, size, other, length in zip(*first, *second, strict=True)
    ]
    shape = tuple(end - start for start, end in zip(low, ends, strict=True))
    return (low, shape) if all(size > 0 for size in shape) else None


def _window(box: Box, origin: Any) -> tuple[slice, ...]:
    """The slices of `box` in an array that begins at `origin`."""
    return tuple(
        slice(start - zero, start - zero + size)
        for start, zero, size in zip(box[0], origin, box[1], strict=True)
    )
