"""Reads the tensors of a Hugging Face folder by rows; memory holds only the requested rows.

Files are read with plain reads rather than mmap, whose pages would count as resident memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.conversion.hf_folder.headers import StoredTensor, read_header
from megatron_prism.conversion.hf_folder.weight_files import find_weight_files, locate_tensors
from megatron_prism.errors import CheckpointError, suggest
from megatron_prism.models.mappings import Shape
from megatron_prism.models.model_folder import CONFIG, read_json


class HFFolder:
    """The tensors of a Hugging Face folder. Opening it reads only the headers, and checks them.

    Attributes:
        remarks: messages for the user, one line each, such as which of several sets of weights was read.

    Raises:
        CheckpointError: naming the file and the tensor, for a shard that is missing or truncated, an index that is
            wrong or points outside the folder, or a dtype that is not a float.
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
                raise CheckpointError(
                    f"{self.path / file}: missing; according to the index it holds '{name}'"
                )
            headers[file] = read_header(self.path / file)
        where, remarks = locate_tensors(self.path, found, headers)
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
        """Fill the contiguous tensor `out` with consecutive rows of a tensor, from `row` on.

        If `out` is narrower than the tensor, it gets as many columns as it has, from `column` on. The rest of a row
        is not read.
        """
        stored = self.stored[name]
        row_bytes = stored.row_bytes
        view = bytes_of(out)
        # Whole rows are contiguous and are read as one piece. Parts of rows are one piece each.
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
        """The file range of these rows."""
        stored = self.stored[name]
        return FileRange(stored.file, stored.offset + row * stored.row_bytes, rows * stored.row_bytes)

    def ranges(self, name: str) -> list[FileRange]:
        """The file range of a whole tensor."""
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
    """The memory of a contiguous tensor."""
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array).cast("B")
