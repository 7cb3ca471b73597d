"""The sizes of floating-point formats, and two operations on rounded numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

# Bits of the significand, the hidden one included.
DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}
# The stored bits of numbers, without the sign bit, have the same order as the magnitudes. For each dtype: the integer
# type of the same width, and the number of low bits that belong to the significand.
STORED = {
    torch.bfloat16: (torch.int16, 7),
    torch.float16: (torch.int16, 10),
    torch.float32: (torch.int32, 23),
}


def sum_and_rounding(columns: Sequence[Any], weights: Sequence[int]) -> tuple[Any, Any]:
    """The weighted sum in fp64, and flags where an addition was rounded (Knuth's TwoSum). Products must be exact."""
    with np.errstate(invalid="ignore"):
        total = columns[0] * weights[0]
        rounded = np.zeros(total.shape, dtype=np.bool_)
        for column, weight in zip(columns[1:], weights[1:], strict=True):
            product = column * weight
            following = total + product
            part = following - total
            rounded |= ((total - (following - part)) + (product - part)) != 0
            total = following
    return total, rounded


def round_to_odd(values: Any, rest: Any) -> Any:
    """Round each exact number to the neighbour whose last bit is odd.

    Rounding the result to at least two bits fewer is the same as rounding the exact number (Boldo and Melquiond 2008,
    "Emulation of FMA and correctly rounded sums").

    Args:
        values: the exact numbers, rounded.
        rest: the sign of the rounding's remainder. A value with a remainder of zero is exact and stays unchanged.
    """
    integer = np.int32 if values.dtype == np.float32 else np.int64
    even = (values.view(integer) & 1) == 0
    ends = np.copysign(np.inf, rest).astype(values.dtype)
    return np.where(even & (rest != 0), np.nextafter(values, ends), values)
