"""Megatron `torch_dist` checkpoints written and read piece by piece: no model, no process group, no GPU.

The format is torch's distributed checkpoint. Values that make their bytes when asked (`LazyTensor`) let its own writer
stream; reading opens the chunks that a piece touches.
"""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from megatron_prism.errors import CheckpointError, suggest
from megatron_prism.models.mappings import Shape

# What Megatron writes beside the tensors (dist_checkpointing/core.py, CheckpointingConfig).
BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass
class LazyTensor:
    """A tensor of a checkpoint to be: chunks by offset, each made when it is written.

    Implements torch's protocol for values that plan their own writes (planner_helpers.py, `_create_write_items`).
    """

    shape: Shape
    dtype: torch.dtype
    chunks: dict[Shape, tuple[Shape, Callable[[], Tensor]]] = field(default_factory=dict)

    def size(self) -> torch.Size:
        return torch.Size(self.shape)

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(torch.Size(offset), torch.Size(size))
            for offset, (size, _) in self.chunks.items()
        ]

    def __create_write_items__(self, fqn: str, value: Any) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        size, make = self.chunks[tuple(index.offset)]
        made = make()
        assert tuple(made.shape) == size, index.fqn
        return made


class _Planner(dcp.DefaultSavePlanner):
    """Asks a lazy tensor for its chunk, and remembers which for an error's sake."""

    writing = ""

    def lookup_object(self, index: MetadataIndex) -> Any:
        self.writing = index.fqn
        value: LazyTensor = self.state_dict[index.fqn]
        return value.__get_tensor_shard__(index)


def write_checkpoint(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a `torch_dist` checkpoint into the existing `folder`, one chunk in memory at a time.

    Raises:
        CheckpointError: naming the tensor at which writing failed.
    """
    planner = _Planner()
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, thread_count=1, sync_files=False)
    try:
        with _without_checksums():
            dcp.save(dict(tensors), storage_writer=writer, planner=planner, no_dist=True)
        torch.save({}, folder / "common.pt")
        (folder / "metadata.json").write_text(json.dumps(BACKEND))
    except (OSError, RuntimeError, dcp.api.CheckpointException) as problem:
        cause = _prism_cause(problem)
        if cause is not None:
            raise cause from None
        first = (str(problem).strip().splitlines() or [type(problem).__name__])[-1][:200]
        raise CheckpointError(
            f"{folder}: tensor '{planner.writing}' cannot be written ({first})"
        ) from problem


@contextmanager
def _without_checksums() -> Iterator[None]:
    """torch.save's checksum takes three times as long as the write itself, and torch.load does not look at it."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _prism_cause(problem: BaseException) -> CheckpointError | None:
    """The reading side's own error, which torch's writer wraps in its own."""
    failures = getattr(problem, "failures", {}) or {}
    for entry in failures.values():
        error = entry[0] if isinstance(entry, tuple) else entry
        if isinstance(error, CheckpointError):
            return error
    return problem if isinstance(problem, CheckpointError) else None


class CheckpointReader:
    """Reads pieces of a `torch_dist` checkpoint, however it was sharded when it was saved.

    The chunks that a piece touches stay in memory until `release`, so that a group of tensors cut from the same chunk
    reads it once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "metadata.json").is_file():
            raise CheckpointError(f"{folder}: not a checkpoint (no metadata.json); it may be half written")
        try:
            self._metadata = dcp.FileSystemReader(folder).read_metadata()
        except Exception as problem:  # a pickle can fail in any way
            raise CheckpointError(f"{folder}/.metadata: not readable ({problem!r:.200})") from None
        self._tensors: dict[str, Any] = {
            key: value
            for key, value in self._metadata.state_dict_metadata.items()
            if hasattr(value, "chunks")
        }
        self._chunks: dict[MetadataIndex, Tensor] = {}

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
        """`count` rows from `row` on (of layer `layer` of a stacked tensor); a view of a chunk where one holds all."""
        entry = self._entry(key)
        stacked = layer is not None
        shape = tuple(entry.size)[1:] if stacked else tuple(entry.size)
        out: Tensor | None = None
        for chunk in entry.chunks:
            if stacked and not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]:
                continue
            offsets, sizes = (tuple(part)[stacked:] for part in (chunk.offsets, chunk.sizes))
            first, last = max(row, offsets[0]), min(row + count, offsets[0] + sizes[0])
            if first >= last:
                continue
            whole = self._chunk(key, chunk)
            part = whole[layer - chunk.offsets[0]] if stacked else whole
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

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        index = MetadataIndex(key, chunk.offsets)
        if index not in self._chunks:
            info = self._metadata.storage_data[index]
            file = self.folder / info.relative_path
            try:
                with open(file, "rb", buffering=0) as handle:
                    window: Any = _Window(handle, info.offset, info.length)
                    loaded = torch.load(window, weights_only=True)
            except Exception as problem:  # a damaged zip can fail in any way
                raise CheckpointError(f"{file}: tensor '{key}' cannot be read ({problem!r:.200})") from None
            if tuple(loaded.shape) != tuple(chunk.sizes):
                raise CheckpointError(f"{file}: tensor '{key}' has another shape than .metadata says")
            self._chunks[index] = loaded
        return self._chunks[index]

    def release(self) -> None:
        """Forget the chunks read so far."""
        self._chunks.clear()
        # torch.load leaves its storages in reference cycles.
        gc.collect()


@contextmanager
def quick_collection() -> Iterator[None]:
    """Make `gc.collect` look only at what is made inside the block: with torch loaded it takes 0.1 s otherwise."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Window(io.RawIOBase):
    """A part of a file as a file, for torch.load."""

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
