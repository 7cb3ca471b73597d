"""Memory that one thread uses for exact sums, block after block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Workspace:
    """One thread's memory for `ExactSum`. Every method returns views of the same memory.

    Args:
        largest: the largest number of elements in a block.
    """

    def __init__(self, largest: int) -> None:
        self._doubles = torch.empty(3, largest, dtype=torch.float64)
        self._integers = torch.empty(3, largest, dtype=torch.int32)
        self._flags = np.empty((2, largest), dtype=np.bool_)

    def doubles(self, count: int) -> tuple[Tensor, Tensor]:
        return self._doubles[0, :count], self._doubles[1, :count]

    def like(self, values: Tensor) -> Tensor:
        return self._doubles[2].view(values.dtype)[: values.numel()]

    def integers(self, count: int, dtype: torch.dtype) -> Sequence[Tensor]:
        return [row.view(dtype)[:count] for row in self._integers]

    def low(self, count: int, dtype: Any) -> Any:
        return self._integers[0].numpy().view(dtype)[:count]

    def flags(self, count: int) -> Sequence[Any]:
        return [row[:count] for row in self._flags]
