"""Writes Megatron `torch_dist` checkpoints piece by piece, without a model, process group or GPU.

The format is torch's distributed checkpoint: a file of `torch.save` containers one after the other, and `.metadata`
with the position of each chunk of each tensor. torch's own writer takes tensors from memory. Here, if the bytes of a
piece are in other files, its container is written first and then the kernel copies the bytes.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_prism.conversion.file_ranges import FileRange, copy_ranges
from megatron_prism.conversion.torch_dist.reader import METADATA, data_offset
from megatron_prism.errors import CheckpointError
from megatron_prism.models.mappings import Shape
from megatron_prism.models.model_folder import CHECKPOINT_METADATA
from megatron_prism.platform.torch_save import without_checksums

# The contents of Megatron's metadata.json (dist_checkpointing/core.py, CheckpointingConfig).
BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
# torch's name for the file of a checkpoint with one writer and one file.
DATA_FILE = "__0_0.distcp"
# The key of a tensor, and the offset of a piece of it.
PieceName = tuple[str, Shape]


@dataclass(frozen=True)
class Piece:
    """A chunk of a planned tensor, with the file ranges of its bytes or a function that makes it."""

    size: Shape
    content: list[FileRange] | Callable[[], Tensor]


@dataclass
class PlannedTensor:
    """A tensor of a planned checkpoint, and the pieces that cover it, by offset."""

    shape: Shape
    dtype: torch.dtype
    pieces: dict[Shape, Piece] = field(default_factory=dict)


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, PlannedTensor],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write a `torch_dist` checkpoint into the existing `folder`. At most one piece is in memory.

    Args:
        progress: called with the size of each written piece.

    Raises:
        CheckpointError: naming the tensor that could not be read or written.
    """

    def write(file: BinaryIO, name: PieceName, piece: Piece, dtype: torch.dtype) -> None:
        progress(_write_piece(file, piece, dtype))

    _write(folder, tensors, write)


def reserve_checkpoint(folder: Path, tensors: Mapping[str, PlannedTensor]) -> dict[PieceName, FileRange]:
    """Write the same checkpoint as `write_checkpoint` without the bytes of its tensors, for which space is reserved.

    The caller writes them, in any order, or for several checkpoints in parallel. The content of the pieces is not used.

    Returns:
        The reserved space of each piece, by the tensor's key and the piece's offset.
    """
    found: dict[PieceName, FileRange] = {}

    def reserve(file: BinaryIO, name: PieceName, piece: Piece, dtype: torch.dtype) -> None:
        start = _write_container(file, piece.size, dtype)
        nbytes = math.prod(piece.size) * dtype.itemsize
        found[name] = FileRange(folder / DATA_FILE, start, nbytes)

    _write(folder, tensors, reserve)
    return found


def _write(
    folder: Path,
    tensors: Mapping[str, PlannedTensor],
    write: Callable[[BinaryIO, PieceName, Piece, torch.dtype], None],
) -> None:
    metadata = Metadata(
        state_dict_metadata={key: _describe(tensor) for key, tensor in tensors.items()},
        planner_data={key: (key,) for key in tensors},
        storage_data={},
    )
    writing = ""
    try:
        with open(folder / DATA_FILE, "w+b") as file, without_checksums():
            for key, tensor in tensors.items():
                writing = key
                for offset, piece in tensor.pieces.items():
                    start = file.tell()
                    write(file, (key, offset), piece, tensor.dtype)
                    info = _StorageInfo(DATA_FILE, start, file.tell() - start)
                    metadata.storage_data[MetadataIndex(key, torch.Size(offset))] = info
        torch.save({}, folder / "common.pt")
        (folder / CHECKPOINT_METADATA).write_text(json.dumps(BACKEND))
        (folder / METADATA).write_bytes(pickle.dumps(metadata))
    except (OSError, RuntimeError) as problem:
        # When writing fails, torch's zip writer raises its own error; the error of the disk is its context.
        cause = problem.__context__ if isinstance(problem.__context__, OSError) else problem
        raise CheckpointError(
            f"{folder}: tensor '{writing}' cannot be written ({str(cause).splitlines()[0]})"
        ) from problem


def _describe(tensor: PlannedTensor) -> TensorStorageMetadata:
    chunks = [
        ChunkStorageMetadata(torch.Size(offset), torch.Size(piece.size))
        for offset, piece in tensor.pieces.items()
    ]
    return TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(tensor.shape), chunks)


def _write_piece(file: BinaryIO, piece: Piece, dtype: torch.dtype) -> int:
    """Append a piece's container and bytes; return the number of bytes."""
    if not isinstance(piece.content, list):
        made = piece.content()
        assert (tuple(made.shape), made.dtype) == (piece.size, dtype)
        torch.save(made, file)
        return made.nbytes
    nbytes = math.prod(piece.size) * dtype.itemsize
    assert nbytes == sum(each.nbytes for each in piece.content)
    start = _write_container(file, piece.size, dtype)
    end = file.tell()
    copy_ranges(piece.content, file.fileno(), start)
    file.seek(end)
    return nbytes


def _write_container(file: BinaryIO, size: Shape, dtype: torch.dtype) -> int:
    """Append the container of a tensor without its bytes; return the offset at which they belong."""
    start = file.tell()
    # This memory is never touched, so no pages are allocated for it.
    empty = torch.empty(size, dtype=dtype)
    with torch.serialization.skip_data():
        torch.save(empty, file)
    end = file.tell()
    file.flush()
    offset = data_offset(file, start, end - start)
    file.seek(end)
    return offset
