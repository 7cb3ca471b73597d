"""The fp32 weights that the optimizer of a bf16 run updates, read from its checkpoint as if they were the model's.

A step of reinforcement learning changes most weights by less than the distance of two bf16 numbers. The model's bf16
weights then stay equal for many steps, while the optimizer's fp32 copies move. Megatron stores these in three ways.

- By parameter, as `optimizer.state.param.KEY` (the distributed optimizer, fully reshardable) or
  `optimizer.state.fp32_param.KEY` (the optimizer without distribution).
- As buckets of the distributed optimizer, with our index of where each parameter lies (`optimizer_buckets.py`).
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch
from torch import Tensor

from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.conversion.torch_dist.reader import CheckpointReader
from megatron_prism.errors import CheckpointError
from megatron_prism.models.mappings import Shape
from megatron_prism.training.optimizer_buckets import Piece, read_index

PREFIXES = ("optimizer.state.param.", "optimizer.state.fp32_param.")
BUCKET_STATE = ".param"


class MainWeightReader(CheckpointReader):
    """Reads the optimizer's fp32 copy of a tensor where the checkpoint has one, and the model's own otherwise.

    A parameter without a copy was not trained, or is fp32 itself.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._by_parameter = {
            name.removeprefix(prefix): name
            for prefix in PREFIXES
            for name in self._tensors
            if name.startswith(prefix)
        }
        self._pieces: dict[str, list[Piece]] = {}
        for piece in read_index(self.folder)[1]:
            if f"{piece.bucket}{BUCKET_STATE}" in self:
                self._pieces.setdefault(piece.key, []).append(piece)

    @property
    def copies(self) -> set[str]:
        """The keys of the tensors that have a copy in fp32."""
        return self._by_parameter.keys() | self._pieces.keys()

    def dtype(self, key: str) -> torch.dtype:
        # Buckets hold what the optimizer updates, in fp32.
        return torch.float32 if key in self._pieces else super().dtype(self._stored_key(key))

    def rows(self, key: str, layer: int | None, row: int, count: int) -> Tensor:
        if key not in self._pieces:
            return super().rows(self._stored_key(key), layer, row, count)
        return self._rows_of_pieces(key, layer, row, count)

    def ranges(self, key: str, layer: int | None, row: int, count: int) -> list[FileRange] | None:
        return None if key in self._pieces else super().ranges(self._stored_key(key), layer, row, count)

    def _stored_key(self, key: str) -> str:
        return self._by_parameter.get(key, key)

    def _rows_of_pieces(self, key: str, layer: int | None, row: int, count: int) -> Tensor:
        shape: Shape = self.shape(key)
        if layer is not None:
            shape = shape[1:]
        out = torch.full((count, *shape[1:]), math.nan)
        for piece in self._pieces[key]:
            offset, size = piece.offset, piece.shape
            if layer is not None:
                if not offset[0] <= layer < offset[0] + size[0]:
                    continue
                # A piece with several layers has them one after the other.
                begin = piece.start + (layer - offset[0]) * math.prod(size[1:])
                offset, size = offset[1:], size[1:]
            else:
                begin = piece.start
            first, last = max(row, offset[0]), min(row + count, offset[0] + size[0])
            if first >= last:
                continue
            width = math.prod(size[1:])
            numbers = super().rows(
                f"{piece.bucket}{BUCKET_STATE}",
                None,
                begin + (first - offset[0]) * width,
                (last - first) * width,
            )
            columns = (slice(start, start + n) for start, n in itertools.zip_longest(offset[1:], size[1:]))
            out[(slice(first - row, last - row), *columns)] = numbers.view(last - first, *size[1:])
        if torch.isnan(out).any():
            raise CheckpointError(
                f"{self.folder}: the optimizer's fp32 copy of '{key}' is incomplete or holds NaN; compare weights that "
                "were saved without the optimizer, or repair the checkpoint"
            )
        return out
