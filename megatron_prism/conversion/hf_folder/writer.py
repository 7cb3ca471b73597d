"""Writes Hugging Face weight files tensor by tensor: numbered files of a limited size, and their index."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from megatron_prism.conversion.file_ranges import FileRange, copy_ranges
from megatron_prism.conversion.hf_folder.headers import header_bytes
from megatron_prism.conversion.hf_folder.reader import bytes_of
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.mappings import Shape
from megatron_prism.models.model_folder import INDEX, SINGLE
from megatron_prism.pipeline.artifact import write_json

MAX_SHARD_BYTES = 5 * 10**9


class FolderWriter:
    """Writes tensors one after the other into numbered files with an index.

    Args:
        folder: an existing folder; the caller moves it to its final name when everything is written.
        tensors: name -> (dtype, shape), in the order in which the tensors will be written.
        max_shard_bytes: the largest size of a file, unless one tensor is larger.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, tuple[torch.dtype, Shape]],
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        if max_shard_bytes < 1:
            raise ConfigError(f"max_shard_bytes={max_shard_bytes}: must be 1 or more")
        self.folder, self._tensors = folder, dict(tensors)
        self._files = _files(self._tensors, max_shard_bytes)
        self._where = {tensor: file for file, group in self._files.items() for tensor in group}
        self._expected = iter(self._tensors)
        self._handle: BinaryIO | None = None
        self._current = ""

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor of `tensors`."""
        assert (tensor.dtype, tuple(tensor.shape)) == self._tensors[name], name
        with self._at(name) as handle:
            view = bytes_of(tensor.contiguous())
            while len(view):
                view = view[handle.write(view) :]

    def copy(self, name: str, ranges: Sequence[FileRange]) -> None:
        """Like `write`, for a tensor whose bytes are in other files."""
        dtype, shape = self._tensors[name]
        assert sum(each.nbytes for each in ranges) == math.prod(shape) * dtype.itemsize, name
        with self._at(name) as handle:
            start = handle.tell()
            copy_ranges(ranges, handle.fileno(), start)
            handle.seek(start + sum(each.nbytes for each in ranges))

    @contextmanager
    def _at(self, name: str) -> Iterator[BinaryIO]:
        """The open file, at the position of tensor `name`."""
        assert name == next(self._expected), f"{name} is written out of order"
        try:
            if self._where[name] != self._current:
                self._open(self._where[name])
            assert self._handle is not None
            yield self._handle
        except OSError as problem:
            file = self.folder / self._where[name]
            raise CheckpointError(f"{file}: tensor '{name}' cannot be written ({problem.strerror})") from None

    def _open(self, file: str) -> None:
        self._close()
        self._handle = open(self.folder / file, "wb", buffering=0)  # noqa: SIM115 (open across calls of write)
        self._handle.write(header_bytes({name: self._tensors[name] for name in self._files[file]}))
        self._current = file

    def _close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if kind is not None:
            return
        missing = next(self._expected, None)
        assert missing is None, f"{missing} has not been written"
        _write_index(self.folder, self._tensors, self._files)


def reserve_folder(
    folder: Path, tensors: Mapping[str, tuple[torch.dtype, Shape]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, FileRange]:
    """Write the same files as `FolderWriter` without the bytes of the tensors; return the reserved range of each.

    The caller writes the bytes, in any order, or for several folders in parallel.
    """
    files, found = _files(tensors, max_shard_bytes), {}
    for file, names in files.items():
        header = header_bytes({name: tensors[name] for name in names})
        offset = len(header)
        for name in names:
            dtype, shape = tensors[name]
            found[name] = FileRange(folder / file, offset, math.prod(shape) * dtype.itemsize)
            offset += found[name].nbytes
        with open(folder / file, "wb") as handle:
            handle.write(header)
            handle.truncate(offset)
    _write_index(folder, tensors, files)
    return found


def _write_index(
    folder: Path, tensors: Mapping[str, tuple[torch.dtype, Shape]], files: Mapping[str, list[str]]
) -> None:
    if len(files) > 1:
        total = sum(math.prod(shape) * dtype.itemsize for dtype, shape in tensors.values())
        where = {name: file for file, names in files.items() for name in names}
        write_json(
            folder / INDEX,
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))},
        )


def _files(tensors: Mapping[str, tuple[torch.dtype, Shape]], limit: int) -> dict[str, list[str]]:
    """The names of the files to write, each with its tensors."""
    groups = _shards(tensors, limit)
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups)}


def _shards(tensors: Mapping[str, tuple[torch.dtype, Shape]], limit: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * dtype.itemsize
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    return groups
