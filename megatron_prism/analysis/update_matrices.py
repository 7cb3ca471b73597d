"""The update of one sub-component of a tensor as a matrix, read in row blocks as often as it is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_prism.analysis.streaming import Piece, check_finite
from megatron_prism.conversion.weights import Weights
from megatron_prism.merging.blocks import OpenFiles, TensorBytes, memory

# Elements of a row block: large enough for fast products, 8 MB in fp64.
BLOCK = 1 << 20


class UpdateMatrix:
    """`other - base` of a two-dimensional piece, in fp64."""

    def __init__(self, piece: Piece, base: Weights, other: Weights, files: OpenFiles) -> None:
        self.piece = piece
        self.rows, self.columns = piece.shape
        self._models: Sequence[Weights] = (base, other)
        self._sources = [TensorBytes(model, piece.tensor, files) for model in self._models]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def blocks(self) -> Iterator[Tensor]:
        """Row blocks in order, [some rows, columns]; each is valid until the next.

        Raises:
            CheckpointError: naming the folder, the tensor and the row of a NaN or an infinite number.
        """
        count = max(1, BLOCK // self.columns)
        stored = [
            torch.empty(min(count, self.rows) * self.columns, dtype=each.dtype) for each in self._sources
        ]
        update = torch.empty(len(stored[0]), dtype=torch.float64)
        for row in range(0, self.rows, count):
            size = min(count, self.rows - row) * self.columns
            first = self.piece.first + row * self.columns
            read = [each[:size] for each in stored]
            for source, raw in zip(self._sources, read, strict=True):
                source.read(first * source.dtype.itemsize, memory(raw))
            difference = update[:size].copy_(read[1]).sub_(read[0])
            if not math.isfinite(float(difference.sum())):
                check_finite(self._models, read, self.piece.tensor, first=first, columns=self.columns)
            yield difference.view(-1, self.columns)

    def whole(self) -> Tensor:
        """The whole matrix, for one that is small."""
        return torch.cat([block.clone() for block in self.blocks()])
