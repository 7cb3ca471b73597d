"""The correctly rounded weighted sum: `sum_i w_i x_i` in exact rational arithmetic, rounded once, at the speed of
floats.

Weights are fractions `p_i / q` over one denominator. A first pass in floats comes with a bound on its error. That
bound settles the rounding of almost every element: only near a midpoint between two numbers of the result's dtype can
the error matter. Elements near a midpoint are decided again, in fp64 with a check that no operation rounded (products
of integers and stored elements usually fit), and where one did, in Python's integers.

Error of the first pass, with u = 2^-24 in fp32 and 2^-53 in fp64:

- Two exact products, one sum of them and one division: each of the last two adds a relative error u, however much
  cancels. Together below 2.1u of the value, which is less than 3 units in the last place.
- Any other sum: below 1.01 (n + 2) u S with S = sum_i |w_i x_i|. Of a block the largest S is used; elements too small
  beside it are decided again, too.

When an fp64 value becomes fp32 on its way to a 16-bit dtype, it moves by at most half a unit, so it can only lose its
side of a midpoint by landing on the midpoint itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Digits of the significand, the hidden one included.
DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}
# Units in the last place in which the first pass can be off: two exact products; any other sum that becomes fp32 (there
# the second condition is that S is at most about 2^13 times the element).
THREE = 3
MANY = 1 << 16
# Up to this q, the quotient of an exact fp64 number N and q, rounded to fp64, is a number m of at most 25 digits only
# if it is exactly m: N - q m is a multiple of N's last place, and one such place is already more than the rounding
# hides.
LARGEST_DENOMINATOR = 1 << 26
# Every finite fp32 number is an integer times 2^-149.
FINEST = 149
# More than what is lost where fp64 itself underflows, and far below what fp32 can tell apart.
UNDERFLOW = 2.0**-900
INTEGERS: dict[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.float64: (torch.int64, np.uint32),
    torch.float32: (torch.int32, np.uint16),
}


class Workspace:
    """One thread's memory for `ExactSum`, used again from block to block.

    Args:
        largest: elements of a block at most.
    """

    def __init__(self, largest: int) -> None:
        self._doubles = torch.empty(3, largest, dtype=torch.float64)
        self._low = np.empty(largest, dtype=np.uint32)
        self._flags = np.empty(largest, dtype=np.bool_)

    def doubles(self, count: int) -> tuple[Tensor, Tensor]:
        return self._doubles[0, :count], self._doubles[1, :count]

    def like(self, values: Tensor) -> Tensor:
        return self._doubles[2].view(values.dtype)[: values.numel()]

    def low(self, count: int, dtype: Any) -> Any:
        return self._low.view(dtype)[:count]

    def flags(self, count: int) -> Any:
        return self._flags[:count]


class ExactSum:
    """`sum_i w_i x_i` of elements of known dtypes, for a result of known dtype. It holds no data: threads share it.

    Args:
        weights: of the terms, in their order.
        inputs: the dtypes the terms are stored in: fp32, bf16 or fp16.
        dtype: of the result: one of these.
    """

    def __init__(
        self, weights: Sequence[Fraction], inputs: Sequence[torch.dtype], dtype: torch.dtype
    ) -> None:
        self._denominator = math.lcm(*(weight.denominator for weight in weights))
        self._numerators = [int(weight * self._denominator) for weight in weights]
        self._shares = [float(weight) for weight in weights]
        pairs = zip(self._numerators, inputs, strict=True)
        digits = max(numerator.bit_length() + DIGITS[each] for numerator, each in pairs)
        self._exact_products = digits <= DIGITS[torch.float64] and self._denominator <= LARGEST_DENOMINATOR
        self._two = self._exact_products and len(weights) == 2
        self._dtype = dtype
        # Two 16-bit models and weights of a few decimals: fp32 holds the products and takes half the time.
        self._in_fp32 = (
            self._two
            and max(digits, self._denominator.bit_length()) <= DIGITS[torch.float32]
            and dtype is not torch.float32
        )
        # Below this the midpoints are others. fp32 has the exponents of bf16, and so the bits of its midpoints.
        self._least = 0.0 if dtype is torch.bfloat16 else float(torch.finfo(dtype).smallest_normal)

    def __call__(self, terms: Sequence[Tensor], out: Tensor, space: Workspace) -> Tensor:
        """The sum as fp32 numbers, in `out`, that rounding to the result's dtype turns into the correctly rounded sum.

        For a 16-bit dtype they lie on the same side of every midpoint as the sum; for fp32 they are the result. What is
        too large becomes infinite. Where a term is NaN or infinite, so is the result.

        Args:
            terms: in fp32, flat, `[count]`; none shares memory with `out`.
        """
        if self._in_fp32:
            self._quotient(terms, out, out)
            # Not finite where a product was too large for fp32, though the sum need not be (or a term is not finite).
            if math.isfinite(float(out.sum())):
                self._settle(terms, out, out, THREE, 0.0, space)
                return out
        doubles, spare = space.doubles(out.numel())
        error = 0.0
        if self._two:
            self._quotient([doubles.copy_(terms[0]), spare.copy_(terms[1])], doubles, doubles)
        else:
            error = self._error_bound(terms)
            torch.mul(doubles.copy_(terms[0]), self._shares[0], out=doubles)
            for term, share in zip(terms[1:], self._shares[1:], strict=True):
                doubles.add_(spare.copy_(term), alpha=share)
        out.copy_(doubles)
        if self._dtype is torch.float32:
            # A unit in the last place of y is more than 2^-53 |y|, and 2^53 error <= MANY |y| for those that are
            # larger.
            self._settle(terms, doubles, out, THREE if self._two else MANY, error * 2.0**53 / MANY, space)
        else:
            # Half a unit in the last place of y in fp32 is more than 2^-25 |y|.
            self._settle(terms, out, out, 0, error * 2.0**25, space)
        return out

    def _quotient(self, terms: Sequence[Tensor], out: Tensor, spare: Tensor) -> None:
        torch.mul(terms[0], self._numerators[0], out=out)
        out.add_(terms[1], alpha=self._numerators[1])
        if self._denominator != 1:
            out.div_(self._denominator)

    def _error_bound(self, terms: Sequence[Tensor]) -> float:
        """Of the first pass in fp64 over these elements; infinite where fp64 cannot hold the sum."""
        largest = [max(abs(float(end)) for end in torch.aminmax(term)) for term in terms]
        total = sum(abs(share) * size for share, size in zip(self._shares, largest, strict=True))
        return 1.01 * (len(terms) + 2) * 2.0**-53 * total + UNDERFLOW if total else 0.0

    def _settle(
        self,
        terms: Sequence[Tensor],
        values: Tensor,
        out: Tensor,
        places: int,
        least: float,
        space: Workspace,
    ) -> None:
        """Find the elements whose rounding the first pass leaves open, and decide them in `out`.

        Args:
            values: what the first pass found, in fp32 or fp64.
            places: by how many units in the last place of `values` it may be off ...
            least: ... where it is not smaller than this. Smaller ones are decided again.
        """
        integer, half = INTEGERS[values.dtype]
        bits, low, flags = (
            values.view(integer).numpy(),
            space.low(len(values), half),
            space.flags(len(values)),
        )
        # A midpoint of the result's dtype has a one and then zeros in the digits that will be dropped.
        dropped = DIGITS[values.dtype] - DIGITS[self._dtype]
        middle = 1 << (dropped - 1)
        np.copyto(low, bits, casting="unsafe")
        if places:
            # Unsigned numbers wrap around, so one comparison sees both sides of the middle.
            low -= half(middle - places)
        if dropped < 8 * low.itemsize:
            low &= half((1 << dropped) - 1)
        if places:
            np.less_equal(low, half(2 * places), out=flags)
        else:
            np.equal(low, half(middle), out=flags)
        least = max(least, self._least)
        if least:
            magnitudes = torch.abs(values, out=space.like(values))
            if float(magnitudes.amin()) < least:
                small = magnitudes.numpy() < least
                if self._two:
                    # Two exact products give zero only for zero, or for what is too small for a 16-bit dtype.
                    small &= magnitudes.numpy() != 0
                flags |= small
        places_open = np.flatnonzero(flags)
        if not len(places_open):
            return
        columns = [term.numpy()[places_open].astype(np.float64) for term in terms]
        if self._exact_products:
            total, inexact = _sum(columns, self._numerators)
            still = np.flatnonzero(self._unsettled(total, inexact, values.numpy()[places_open]))
            places_open, columns = places_open[still], [column[still] for column in columns]
            decided = self._decided(columns, total[still] / self._denominator, inexact[still])
        else:
            anything = np.any([column != 0 for column in columns], axis=0)
            decided = self._decided(columns, np.zeros(len(places_open)), anything)
        out.numpy()[places_open] = decided

    def _unsettled(self, total: Any, inexact: Any, found: Any) -> Any:
        """Where the first pass is not right as it is. Most elements that were looked at are ties, and it is."""
        if self._dtype is not torch.float32:
            # Exact: at most 24 and 26 digits. A tie that was found goes to even when it is rounded to 16 bits.
            return inexact | (found.astype(np.float64) * self._denominator != total)
        return inexact if self._two else np.ones(len(total), dtype=np.bool_)

    def _decided(self, columns: Sequence[Any], sums: Any, inexact: Any) -> Any:
        """A few sums as `__call__` gives them.

        Args:
            columns: the elements of each term, fp64 `[count]`.
            sums: in fp64, rounded once ...
            inexact: ... but for these.
        """
        rest = np.zeros(len(sums))
        for place in np.flatnonzero(inexact):
            sums[place], rest[place] = self._by_integers([float(column[place]) for column in columns])
        # A sum that fp64 does not hold becomes its neighbour whose last digit is odd: rounding that to fewer digits is
        # rounding the sum itself (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
        sums = _odd(sums, rest)
        with np.errstate(over="ignore"):
            singles = sums.astype(np.float32)
        if self._dtype is torch.float32:
            return singles
        return _odd(singles, sums - singles)

    def _by_integers(self, elements: Sequence[float]) -> tuple[float, int]:
        """The sum of one element rounded to fp64, and a number with the sign of what that cut off."""
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


def _sum(columns: Sequence[Any], weights: Sequence[int]) -> tuple[Any, Any]:
    """The weighted sum in fp64, and where an addition rounded (Knuth's TwoSum); products are known to be exact."""
    total = columns[0] * weights[0]
    rounded = np.zeros(total.shape, dtype=np.bool_)
    for column, weight in zip(columns[1:], weights[1:], strict=True):
        product = column * weight
        following = total + product
        part = following - total
        rounded |= ((total - (following - part)) + (product - part)) != 0
        total = following
    return total, rounded


def _odd(values: Any, rest: Any) -> Any:
    """Rounded values and the sign of what was cut off: where that is not zero, the odd one of the two neighbours."""
    integer = np.int32 if values.dtype == np.float32 else np.int64
    even = (values.view(integer) & 1) == 0
    ends = np.copysign(np.inf, rest).astype(values.dtype)
    return np.where(even & (rest != 0), np.nextafter(values, ends), values)
