"""The headers of safetensors files: the position of each tensor, checked against the size of its file.

The format (github.com/huggingface/safetensors): eight bytes of header length, a JSON header with each tensor's dtype,
shape and byte range, then the bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_prism.errors import CheckpointError
from megatron_prism.models.mappings import Shape
from megatron_prism.pipeline.json_text import FETCH_LFS, LFS_POINTER

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
HEADER_LIMIT = 100 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """The position of a tensor (its file and the offset of its first byte), with dtype and shape."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of dimension 0; of the whole tensor if it is a scalar."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file; its position is checked against the size of the file."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else HEADER_LIMIT
        if length >= HEADER_LIMIT or 8 + length > size:
            if (head + handle.read(len(LFS_POINTER))).startswith(LFS_POINTER):
                raise CheckpointError(f"{path}: {FETCH_LFS}")
            raise CheckpointError(
                f"{path}: truncated, or not a safetensors file (the header is longer than the file)"
            )
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
                f"{path}: tensor '{name}' has dtype {code}, which cannot be converted; save the model in "
                f"one of {', '.join(DTYPES)}"
            )
        stored = StoredTensor(path, 8 + length + begin, DTYPES[code], shape)
        if end - begin != stored.nbytes:
            raise CheckpointError(
                f"{path}: tensor '{name}' has {end - begin} bytes, but its shape {list(shape)} needs {stored.nbytes}"
            )
        if stored.offset + stored.nbytes > size:
            raise CheckpointError(f"{path}: truncated inside tensor '{name}'")
        found[name] = stored
    return found


def header_bytes(tensors: Mapping[str, tuple[torch.dtype, Shape]]) -> bytes:
    """The header of a file with these tensors, padded so that the first tensor is aligned to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
