"""Computes in Python's integers the few sums that floats cannot decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from megatron_prism.merging.exact.float_bits import round_to_odd

# Every finite fp32 number is an integer times 2^-149.
FINEST = 149


class IntegerSum:
    """`sum_i p_i x_i / q` of single elements, for a result of one dtype.

    Args:
        numerators, denominator: the p_i and q.
        dtype: of the result: fp32, bf16 or fp16.
    """

    def __init__(self, numerators: Sequence[int], denominator: int, dtype: torch.dtype) -> None:
        self._numerators, self._denominator, self._dtype = numerators, denominator, dtype

    def decide(self, columns: Sequence[Any], sums: Any, inexact: Any) -> Any:
        """fp32 numbers that become the correctly rounded sums when they are rounded to the result's dtype.

        Args:
            columns: the elements of each term, fp64 `[count]`.
            sums: the sums in fp64, each rounded once. Those flagged in `inexact` are computed here and overwritten.
        """
        rest = np.zeros(len(sums))
        for place in np.flatnonzero(inexact):
            sums[place], rest[place] = self._sum([float(column[place]) for column in columns])
        sums = round_to_odd(sums, rest)
        with np.errstate(over="ignore"):
            singles = sums.astype(np.float32)
        if self._dtype is torch.float32:
            return singles
        return round_to_odd(singles, sums - singles)

    def _sum(self, elements: Sequence[float]) -> tuple[float, int]:
        """The sum of one element rounded to fp64, and a number with the sign of the rounding's remainder."""
        if not all(map(math.isfinite, elements)):
            return math.nan, 0
        numerator = sum(
            weight * int(math.ldexp(element, FINEST))
            for weight, element in zip(self._numerators, elements, strict=True)
        )
        denominator = self._denominator << FINEST
        try:
            near = numerator / denominator
        except OverflowError:
            return math.copysign(math.inf, numerator), 0
        above, below = near.as_integer_ratio()
        rest = numerator * below - above * denominator
        return near, (rest > 0) - (rest < 0)
