"""The tensors of a Hugging Face folder, read by rows: memory holds the rows that are asked for, never a file.

Plain reads are used and not mmap, whose pages would count as resident memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.conversion.hf_folder.headers import StoredTensor, read_header
from megatron_prism.conversion.hf_folder.weight_files import find_weight_files, merged
from megatron_prism.errors import CheckpointError, suggest
from megatron_prism.models.mappings import Shape
from megatron_prism.models.model_folder import CONFIG, read_json


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
        view = bytes_of(out)
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


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's own memory."""
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array).cast("B")
