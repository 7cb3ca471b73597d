"""Reads Megatron `torch_dist` checkpoints piece by piece, with any sharding, without a model or process group."""

from __future__ import annotations

import gc
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.errors import CheckpointError, suggest
from megatron_prism.models.mappings import Shape
from megatron_prism.models.model_folder import CHECKPOINT_METADATA

METADATA = ".metadata"


class CheckpointReader:
    """Reads pieces of a `torch_dist` checkpoint, with any sharding.

    The chunks that have been read stay in memory until `release`, so a chunk that holds parts of several tensors is
    read once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / CHECKPOINT_METADATA).is_file():
            raise CheckpointError(
                f"{folder}: not a checkpoint (no {CHECKPOINT_METADATA}); the save may have been interrupted"
            )
        try:
            self._metadata = FileSystemReader(folder).read_metadata()
        except Exception as problem:  # unpickling can raise any exception
            raise CheckpointError(f"{self.folder / METADATA}: not readable ({problem!r:.200})") from None
        self._tensors: dict[str, Any] = {
            key: value
            for key, value in self._metadata.state_dict_metadata.items()
            if hasattr(value, "chunks")
        }
        self._chunks: dict[MetadataIndex, Tensor] = {}
        self._data_ranges: dict[MetadataIndex, FileRange] = {}

    def shape(self, key: str) -> Shape:
        return tuple(self._entry(key).size)

    def dtype(self, key: str) -> torch.dtype:
        dtype: torch.dtype = self._entry(key).properties.dtype
        return dtype

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def _entry(self, key: str) -> Any:
        if key not in self._tensors:
            near = suggest(key, self._tensors) if len(self._tensors) < 10_000 else ""
            raise CheckpointError(f"{self.folder}: no tensor '{key}'{near}")
        return self._tensors[key]

    def rows(self, key: str, layer: int | None, row: int, count: int) -> Tensor:
        """`count` rows from `row` on (of layer `layer` of a stacked tensor).

        If one chunk holds them all, a view of it.
        """
        entry = self._entry(key)
        shape = tuple(entry.size) if layer is None else tuple(entry.size)[1:]
        out: Tensor | None = None
        for chunk, first, last in self._overlapping(key, layer, row, count):
            offsets, sizes = _without_layer(chunk, layer)
            whole = self._chunk(key, chunk)
            part = whole if layer is None else whole[layer - chunk.offsets[0]]
            part = part[first - offsets[0] : last - offsets[0]]
            if last - first == count and sizes[1:] == shape[1:]:
                return part
            if out is None:
                out = torch.empty((count, *shape[1:]), dtype=entry.properties.dtype)
            columns = tuple(slice(o, o + n) for o, n in zip(offsets[1:], sizes[1:], strict=True))
            out[(slice(first - row, last - row), *columns)] = part
        if out is None:
            raise CheckpointError(f"{self.folder}: tensor '{key}' has no rows {row} to {row + count}")
        return out

    def ranges(self, key: str, layer: int | None, row: int, count: int) -> list[FileRange] | None:
        """The file ranges of these rows, in order; None if a chunk holds only some of the columns."""
        entry = self._entry(key)
        shape = tuple(entry.size) if layer is None else tuple(entry.size)[1:]
        row_bytes = math.prod(shape[1:]) * entry.properties.dtype.itemsize
        found, reached = [], row
        for chunk, first, last in sorted(self._overlapping(key, layer, row, count), key=lambda each: each[1]):
            offsets, sizes = _without_layer(chunk, layer)
            if sizes[1:] != shape[1:] or first != reached:
                return None
            data = self._data_range(key, chunk)
            skipped = 0 if layer is None else (layer - chunk.offsets[0]) * sizes[0]
            start = data.offset + (skipped + first - offsets[0]) * row_bytes
            found.append(FileRange(data.file, start, (last - first) * row_bytes))
            reached = last
        return found if reached == row + count else None

    def _overlapping(
        self, key: str, layer: int | None, row: int, count: int
    ) -> Iterator[tuple[ChunkStorageMetadata, int, int]]:
        """The chunks with some of these rows; for each, the first of these rows in it and the row after the last."""
        for chunk in self._entry(key).chunks:
            if layer is not None and not 0 <= layer - chunk.offsets[0] < chunk.sizes[0]:
                continue
            offsets, sizes = _without_layer(chunk, layer)
            first, last = max(row, offsets[0]), min(row + count, offsets[0] + sizes[0])
            if first < last:
                yield chunk, first, last

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        index = MetadataIndex(key, chunk.offsets)
        if index not in self._chunks:
            self._chunks[index] = self._load(index, chunk)
        return self._chunks[index]

    def _load(self, index: MetadataIndex, chunk: ChunkStorageMetadata) -> Tensor:
        info = self._metadata.storage_data[index]
        file = self.folder / info.relative_path
        try:
            with open(file, "rb", buffering=0) as handle:
                window: Any = _Window(handle, info.offset, info.length)
                loaded: Tensor = torch.load(window, weights_only=True)
        except Exception as problem:  # reading a damaged zip file can raise any exception
            raise CheckpointError(f"{file}: tensor '{index.fqn}' cannot be read ({problem!r:.200})") from None
        if tuple(loaded.shape) != tuple(chunk.sizes):
            raise CheckpointError(
                f"{file}: tensor '{index.fqn}' does not have the shape recorded in .metadata"
            )
        return loaded

    def _data_range(self, key: str, chunk: ChunkStorageMetadata) -> FileRange:
        """The file range of the data of a chunk. Only the chunk's container is read, not its data."""
        index = MetadataIndex(key, chunk.offsets)
        if index not in self._data_ranges:
            info = self._metadata.storage_data[index]
            file = self.folder / info.relative_path
            nbytes = math.prod(chunk.sizes) * self.dtype(key).itemsize
            try:
                with open(file, "rb", buffering=0) as handle:
                    check_rows(handle, info.offset, info.length, tuple(chunk.sizes))
                    start = data_offset(handle, info.offset, info.length)
            except Exception as problem:  # reading a damaged zip file can raise any exception
                raise CheckpointError(f"{file}: tensor '{key}' cannot be read ({problem!r:.200})") from None
            if start + nbytes > file.stat().st_size:
                raise CheckpointError(f"{file}: truncated inside tensor '{key}'")
            self._data_ranges[index] = FileRange(file, start, nbytes)
        return self._data_ranges[index]

    def release(self) -> None:
        """Free the chunks read so far."""
        if self._chunks:
            self._chunks.clear()
            # torch.load leaves its storages in reference cycles.
            gc.collect()


def _without_layer(chunk: ChunkStorageMetadata, layer: int | None) -> tuple[Shape, Shape]:
    """Offsets and sizes of a chunk without the axis of layers."""
    axis = 0 if layer is None else 1
    return tuple(chunk.offsets)[axis:], tuple(chunk.sizes)[axis:]


def data_offset(file: BinaryIO, start: int, length: int) -> int:
    """The file offset of the data of a tensor that `torch.save` wrote at `start`."""
    window: Any = _Window(file, start, length)
    reader: Any = torch._C.PyTorchFileReader(window)
    offset: int = reader.get_record_offset("data/0")
    return start + offset


def check_rows(file: BinaryIO, start: int, length: int, shape: Shape) -> None:
    """Raise a ValueError unless the tensor that `torch.save` wrote at `start` has this shape and is stored by rows."""
    window: Any = _Window(file, start, length)
    with torch.serialization.skip_data():
        saved = torch.load(window, weights_only=True, map_location="meta")
    whole = saved.untyped_storage().nbytes() == saved.numel() * saved.element_size()
    if tuple(saved.shape) != shape or not saved.is_contiguous() or saved.storage_offset() or not whole:
        raise ValueError(f"a tensor of shape {list(saved.shape)} is not stored row by row")


@contextmanager
def quick_collection() -> Iterator[None]:
    """Limit `gc.collect` to objects made inside the block. Otherwise it takes 0.1 s with torch loaded.

    `gc.unfreeze` would also thaw what was frozen before (`platform/lean_imports.py`), and every later collection of the
    process would visit all imported objects again. So in such a process the objects stay frozen.
    """
    frozen_before = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()


class _Window(io.RawIOBase):
    """A part of a file that torch.load can read like a file."""

    def __init__(self, handle: BinaryIO, offset: int, length: int) -> None:
        self._handle, self._offset, self._length, self._position = handle, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._length)[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._position)]
        self._handle.seek(self._offset + self._position)
        got: int = self._handle.readinto(view)  # type: ignore[attr-defined]
        self._position += got
        return got
