"""The sum with weights of so many digits that no float holds their products with the elements exactly.

The sum in fp64 has an error of at most 1.01 (n + 2) 2^-53 S, with S = sum_i |w_i x_i| (the largest of a block). Two
kinds of elements cannot be decided by that bound and are summed in integers: those too near to a midpoint between two
numbers of the result's dtype, and those too small compared with S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_prism.merging.exact.float_bits import DIGITS
from megatron_prism.merging.exact.integers import IntegerSum
from megatron_prism.merging.exact.workspace import Workspace

# The error bound may span this many units in the last place of fp64 around a midpoint of fp32.
MAX_ERROR_UNITS = 1 << 16
# More than the error of an underflow in fp64, and far less than any difference in fp32.
UNDERFLOW = 2.0**-900
INTEGERS: dict[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.float64: (torch.int64, np.uint32),
    torch.float32: (torch.int32, np.uint16),
}


class BoundedSum:
    """The sum with weights rounded to fp64. Elements that its error bound cannot decide are summed in integers.

    Args:
        weights: rounded to fp64.
        integers: the same sum in integers.
        dtype: of the result.
    """

    def __init__(self, weights: Sequence[float], integers: IntegerSum, dtype: torch.dtype) -> None:
        self._weights, self._integers, self._dtype = weights, integers, dtype

    def __call__(self, terms: Sequence[Tensor], out: Tensor, space: Workspace) -> None:
        """As `ExactSum.__call__`."""
        doubles, spare = space.doubles(out.numel())
        torch.mul(doubles.copy_(terms[0]), self._weights[0], out=doubles)
        for term, weight in zip(terms[1:], self._weights[1:], strict=True):
            doubles.add_(spare.copy_(term), alpha=weight)
        out.copy_(doubles)
        places = self._undecided(doubles, out, self._error(terms), space)
        columns = [term.numpy()[places].astype(np.float64) for term in terms]
        not_all_zero = np.any([column != 0 for column in columns], axis=0)
        out.numpy()[places] = self._integers.decide(columns, np.zeros(len(places)), not_all_zero)

    def _error(self, terms: Sequence[Tensor]) -> float:
        """The bound of the error, for a whole block. It is infinite if fp64 cannot hold the sum."""
        largest = [max(abs(float(end)) for end in torch.aminmax(term)) for term in terms]
        total = sum(abs(weight) * size for weight, size in zip(self._weights, largest, strict=True))
        return 1.01 * (len(terms) + 2) * 2.0**-53 * total + UNDERFLOW if total else 0.0

    def _undecided(self, doubles: Tensor, out: Tensor, error: float, space: Workspace) -> Any:
        """The indices of the elements that the error bound cannot decide."""
        if self._dtype is torch.float32:
            # A unit in the last place of y is more than 2^-53 |y|: for |y| from `least` on, MAX_ERROR_UNITS of them are
            # more than the error.
            values, places, least = doubles, MAX_ERROR_UNITS, error * 2.0**53 / MAX_ERROR_UNITS
        else:
            # Half a unit in the last place of y in fp32 is more than 2^-25 |y|: only a midpoint itself is undecided.
            values, places, least = out, 0, error * 2.0**25
        integer, half = INTEGERS[values.dtype]
        low, flags = space.low(len(out), half), space.flags(len(out))[0]
        # In the digits that will be dropped, a midpoint has a one and then zeros.
        dropped = DIGITS[values.dtype] - DIGITS[self._dtype]
        np.copyto(low, values.view(integer).numpy(), casting="unsafe")
        # Unsigned numbers wrap around, so one comparison covers both sides of the midpoint.
        low -= half((1 << (dropped - 1)) - places)
        low &= half((1 << dropped) - 1)
        np.less_equal(low, half(2 * places), out=flags)
        magnitudes = torch.abs(values, out=space.like(values))
        # Below the smallest normal number the midpoints are different.
        least = max(least, float(torch.finfo(self._dtype).smallest_normal))
        # In fp32 `least` may be infinite: then every element is undecided.
        with np.errstate(over="ignore"):
            flags |= ~(magnitudes.numpy() >= least)
        return np.flatnonzero(flags)
