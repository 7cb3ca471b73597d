"""Hugging Face weight files, read by rows and written tensor by tensor: memory holds what is asked for, never a file.

The format (github.com/huggingface/safetensors): eight bytes of header length, a JSON header with each tensor's dtype,
shape and byte range, then the bytes. Plain reads are used and not mmap, whose pages would count as resident memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from megatron_prism.conversion.file_ranges import FileRange, copy_ranges
from megatron_prism.conversion.weight_files import INDEX, SINGLE, find_weight_files, merged
from megatron_prism.errors import CheckpointError, ConfigError, suggest
from megatron_prism.models.mappings import Shape
from megatron_prism.pipeline.artifact import write_json
from megatron_prism.pipeline.json_text import FETCH_LFS, LFS_POINTER, read_object

CONFIG = "config.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_SHARD_BYTES = 5 * 10**9
HEADER_LIMIT = 100 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, the offset of its first byte, dtype and shape."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of dimension 0; of the whole where there is no such dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class HFFolder:
    """The tensors of a Hugging Face folder. Opening reads headers only and finds every damage they can show.

    Attributes:
        remarks: what a user should hear, one line each: which of several sets of weights was read.

    Raises:
        CheckpointError: naming the file, and the tensor where there is one, for a shard that is missing or truncated,
            an index that is wrong or points out of the folder, or a dtype that is no float.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder)
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: no such folder")
        found = find_weight_files(self.path)
        headers = {}
        for file in found.files:
            if not (self.path / file).is_file():
                name = next(name for name, where in found.weight_map.items() if where == file)
                raise CheckpointError(f"{self.path / file}: missing; the index puts '{name}' there")
            headers[file] = read_header(self.path / file)
        where, remarks = merged(self.path, found, headers)
        self.stored: dict[str, StoredTensor] = {name: headers[file][name] for name, file in where.items()}
        self.remarks = found.remarks + remarks

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: stored.shape for name, stored in self.stored.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: stored.dtype for name, stored in self.stored.items()}

    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        return read_json(self.path / CONFIG)

    def read(self, name: str, row: int, out: Tensor, column: int = 0) -> None:
        """Fill the contiguous `out` with consecutive rows of a tensor, from `row` on.

        An `out` narrower than the tensor gets that many columns, from `column` on; the rest of a row is not read.
        """
        stored = self.stored[name]
        row_bytes = stored.row_bytes
        view = _bytes_of(out)
        # Whole rows lie together: one piece. Parts of rows are one piece each.
        size = len(view)
        if tuple(out.shape[1:]) != stored.shape[1:]:
            assert out.dim() == len(stored.shape) == 2, f"{name}: only a matrix is cut along its columns"
            assert column + out.shape[1] <= stored.shape[1], name
            size = out.shape[1] * stored.dtype.itemsize
        offset = stored.offset + row * row_bytes + column * stored.dtype.itemsize
        with open(stored.file, "rb", buffering=0) as handle:
            for index in range(len(view) // max(size, 1)):
                piece, start, done = view[index * size : (index + 1) * size], offset + index * row_bytes, 0
                while done < size:
                    got = os.preadv(handle.fileno(), [piece[done:]], start + done)
                    if not got:
                        raise CheckpointError(f"{stored.file}: ends inside tensor '{name}'")
                    done += got

    def range(self, name: str, row: int, rows: int) -> FileRange:
        """Where the bytes of these rows lie."""
        stored = self.stored[name]
        return FileRange(stored.file, stored.offset + row * stored.row_bytes, rows * stored.row_bytes)

    def ranges(self, name: str) -> list[FileRange]:
        """Where the bytes of a whole tensor lie."""
        stored = self.stored[name]
        return [FileRange(stored.file, stored.offset, stored.nbytes)]

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        if name not in self.stored:
            raise CheckpointError(f"{self.path}: no tensor '{name}'{suggest(name, self.stored)}")
        out = torch.empty(self.stored[name].shape, dtype=self.stored[name].dtype)
        self.read(name, 0, out.reshape(-1) if out.dim() == 0 else out)
        return out


def _bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's own memory."""
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array).cast("B")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; a CheckpointError names the file that is missing or is not one."""
    return read_object(path, CheckpointError)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file, with its place checked against the file's size."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else HEADER_LIMIT
        if length >= HEADER_LIMIT or 8 + length > size:
            if (head + handle.read(len(LFS_POINTER))).startswith(LFS_POINTER):
                raise CheckpointError(f"{path}: {FETCH_LFS}")
            raise CheckpointError(f"{path}: truncated, or not a safetensors file (its header does not fit)")
        try:
            header = json.loads(handle.read(length))
        except (ValueError, RecursionError) as problem:
            raise CheckpointError(f"{path}: its header is not JSON ({problem})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a JSON object")
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            (begin, end), shape, code = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
            if any(type(number) is not int or number < 0 for number in (begin, end, *shape)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path}: tensor '{name}' has no readable header entry") from None
        if not isinstance(code, str) or code not in DTYPES:
            raise CheckpointError(
                f"{path}: tensor '{name}' is of dtype {code}; only {', '.join(DTYPES)} can be converted; "
                "save the model in one of them"
            )
        stored = StoredTensor(path, 8 + length + begin, DTYPES[code], shape)
        if end - begin != stored.nbytes:
            raise CheckpointError(
                f"{path}: tensor '{name}' has {end - begin} bytes, its shape {list(shape)} needs {stored.nbytes}"
            )
        if stored.offset + stored.nbytes > size:
            raise CheckpointError(f"{path}: truncated inside tensor '{name}'")
        found[name] = stored
    return found


class FolderWriter:
    """Writes tensors one after the other into numbered files with an index, in the order announced.

    Args:
        folder: exists; the caller moves it to its final name when all is written.
        tensors: name -> (dtype, shape), in the order in which `write` will be called.
        max_shard_bytes: a file is closed before it would grow beyond this.
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
        """Append a tensor; it is the next one announced, with its dtype and shape."""
        assert (tensor.dtype, tuple(tensor.shape)) == self._tensors[name], name
        with self._place(name) as handle:
            view = _bytes_of(tensor.contiguous())
            while len(view):
                view = view[handle.write(view) :]

    def copy(self, name: str, ranges: Sequence[FileRange]) -> None:
        """As `write`, for a tensor whose bytes lie in other files."""
        dtype, shape = self._tensors[name]
        assert sum(each.nbytes for each in ranges) == math.prod(shape) * dtype.itemsize, name
        with self._place(name) as handle:
            start = handle.tell()
            copy_ranges(ranges, handle.fileno(), start)
            handle.seek(start + sum(each.nbytes for each in ranges))

    @contextmanager
    def _place(self, name: str) -> Iterator[BinaryIO]:
        """The open file, at the place of tensor `name`."""
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
        self._handle.write(_header({name: self._tensors[name] for name in self._files[file]}))
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
        assert missing is None, f"{missing} was announced and not written"
        _write_index(self.folder, self._tensors, self._files)


def reserve_folder(
    folder: Path, tensors: Mapping[str, tuple[torch.dtype, Shape]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, FileRange]:
    """Write the files that `FolderWriter` would, with holes for the tensors; return the hole of each.

    For a caller that fills them in any order, or several folders side by side.
    """
    files, found = _files(tensors, max_shard_bytes), {}
    for file, names in files.items():
        header = _header({name: tensors[name] for name in names})
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


def _header(tensors: Mapping[str, tuple[torch.dtype, Shape]]) -> bytes:
    """What a file of these tensors begins with; padded so that the first tensor is aligned to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


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
    """The files to write, each with its tensors."""
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


def check_tensors(
    found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], where: str, family: str
) -> None:
    """Raise a CheckpointError naming the first tensor that is missing, unknown or of another shape."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(
                f"{where}: no tensor '{name}', which {family} needs{suggest(name, _unknown(found, expected))}"
            )
        if tuple(found[name]) != tuple(shape):
            empty = (
                "; an empty tensor is what a model leaves that was saved while its weights were spread over ranks (as "
                "by DeepSpeed's ZeRO-3): gather them and save again"
            )
            raise CheckpointError(
                f"{where}: tensor '{name}' has shape {list(found[name])}, config.json says {list(shape)}"
                f"{empty if 0 in found[name] else ''}"
            )
    for name in sorted(_unknown(found, expected)):
        raise CheckpointError(
            f"{where}: tensor '{name}' has no place in family '{family}'; remove it if the model does not "
            "use it, or mend the config"
        )


def _unknown(found: Iterable[str], expected: Mapping[str, Any]) -> set[str]:
    return set(found) - expected.keys()
