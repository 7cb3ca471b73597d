"""The correctly rounded weighted sum: `sum_i w_i x_i` in exact rational arithmetic, rounded once, at the speed of
floats.

Weights are fractions `p_i / q` over one denominator. Stored numbers have few digits, and the p_i are small: so the
numerator `N = sum_i p_i x_i` is exact in fp32 or fp64 unless the exponents of an element's terms lie far apart, which
the stored bits show. `N / q` is rounded once to the working dtype, and rounding that to the result's dtype rounds the
sum (see `largest_denominator`). Where fp64 becomes a 16-bit dtype by way of fp32, the first rounding can land on a
midpoint that the number was not on; such elements are moved off it again. Elements with exponents far apart are added
up anew: in fp64 with a check that nothing was rounded, and where something was, in Python's integers.

Weights with many digits have no exact products. Their sums in fp64 come with a bound on the error, 1.01 (n + 2) 2^-53 S
with S = sum_i |w_i x_i| (the largest of a block). What the bound leaves open is added up in integers: elements too near
to a midpoint between two numbers of the result's dtype, and elements too small beside S.
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
# The bits of a number without its sign are ordered as the magnitudes are; so many of them are the significand's.
STORED = {
    torch.bfloat16: (torch.int16, 7),
    torch.float16: (torch.int16, 10),
    torch.float32: (torch.int32, 23),
}
# fp32 is worked in where exponents may differ by this much before an element must be added up anew: few differ by more.
NEAR = 8
# How many last places of fp64 around a midpoint of fp32 the bounded error may span.
MANY = 1 << 16
# With more flags than this share of a block, those that zeros caused (they have the smallest exponent) are dropped.
CROWD = 0.02
# Every finite fp32 number is an integer times 2^-149.
FINEST = 149
# More than what is lost where fp64 itself underflows, and far below what fp32 can tell apart.
UNDERFLOW = 2.0**-900
INTEGERS: dict[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.float64: (torch.int64, np.uint32),
    torch.float32: (torch.int32, np.uint16),
}


def largest_denominator(working: torch.dtype, result: torch.dtype) -> int:
    """Up to this q, `N / q` rounded to `working` is a midpoint m of `result` only if it is exactly m.

    Say N - q m is not zero. It is a multiple of N's last place or of m's. With m in [2^e, 2^(e+1)), d digits of
    `working` and t of `result`, rounding the quotient hides at most q 2^(e - d) of it. N's last place is larger than
    that, and so is m's, which is 2^(e - t) or more, if q < 2^(d - t).
    """
    return 1 << (DIGITS[working] - DIGITS[result] - 1)


class Workspace:
    """One thread's memory for `ExactSum`, used again from block to block.

    Args:
        largest: elements of a block at most.
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
        self._dtype = dtype
        self._as_stored = len(set(inputs)) == 1
        self._stored = inputs[0] if self._as_stored else torch.float32
        # Partial sums are multiples of the last place of the smallest term and at most
        # (sum_i |p_i|) 2^(largest exponent + 1): exact in d digits while exponents differ by at most
        # d - (digits stored) - log2(sum_i |p_i|).
        digits = max(DIGITS[each] for each in inputs)
        needed = digits + sum(map(abs, self._numerators)).bit_length()
        self._apart = {working: DIGITS[working] - needed for working in (torch.float32, torch.float64)}
        self._exact = self._apart[torch.float64] >= 0 and self._denominator <= largest_denominator(
            torch.float64, torch.float32
        )
        self._in_fp32 = (
            dtype is not torch.float32
            and self._apart[torch.float32] >= NEAR
            and self._denominator <= largest_denominator(torch.float32, dtype)
        )
        # N is zero or at least the last place of a term: with terms from here on, N / q is a normal number of fp32.
        self._least_field = 2 + digits + self._denominator.bit_length()
        # Below this exponent no partial sum is too large for fp32 (fp16 as it is stored cannot come near).
        self._largest_field = 31 if self._stored is torch.float16 else 253 - (needed - digits)

    def __call__(
        self, terms: Sequence[Tensor], stored: Sequence[Tensor], out: Tensor, space: Workspace
    ) -> Tensor:
        """The sum as fp32 numbers, in `out`, that rounding to the result's dtype turns into the correctly rounded sum.

        For a 16-bit dtype they lie on the same side of every midpoint as the sum; for fp32 they are the result. What is
        too large becomes infinite. Where a term is NaN or infinite, so is the result.

        Args:
            terms: in fp32, flat, `[count]`; none shares memory with `out`.
            stored: the same as they are stored.
        """
        if self._in_fp32:
            self._quotient(terms, out)
            if self._mend(terms, stored, out, torch.float32, space):
                return out
        doubles, spare = space.doubles(out.numel())
        if not self._exact:
            self._bounded(terms, out, doubles, spare, space)
            return out
        torch.mul(doubles.copy_(terms[0]), self._numerators[0], out=doubles)
        for term, numerator in zip(terms[1:], self._numerators[1:], strict=True):
            doubles.add_(spare.copy_(term), alpha=numerator)
        if self._denominator != 1:
            doubles.div_(self._denominator)
        out.copy_(doubles)
        if self._dtype is not torch.float32:
            self._off_midpoints(doubles, out, space)
        self._mend(terms, stored, out, torch.float64, space)
        return out

    def _quotient(self, terms: Sequence[Tensor], out: Tensor) -> None:
        torch.mul(terms[0], self._numerators[0], out=out)
        for term, numerator in zip(terms[1:], self._numerators[1:], strict=True):
            out.add_(term, alpha=numerator)
        if self._denominator != 1:
            out.div_(self._denominator)

    def _off_midpoints(self, doubles: Tensor, out: Tensor, space: Workspace) -> None:
        """Undo what rounding fp64 to fp32 did to numbers that it put on a midpoint of the 16-bit dtype."""
        low, flags = space.low(len(out), np.uint16), space.flags(len(out))[0]
        # A midpoint has only zeros below the first of the digits that will be dropped (so have the numbers themselves).
        below = (1 << (DIGITS[torch.float32] - DIGITS[self._dtype] - 1)) - 1
        np.copyto(low, out.view(torch.int32).numpy(), casting="unsafe")
        np.equal(np.bitwise_and(low, np.uint16(below), out=low), 0, out=flags)
        places = np.flatnonzero(flags)
        exact, singles = doubles.numpy()[places], out.numpy()[places]
        moved = np.flatnonzero(np.isfinite(singles) & (exact != singles))
        out.numpy()[places[moved]] = _odd(singles[moved], exact[moved] - singles[moved])

    def _mend(
        self,
        terms: Sequence[Tensor],
        stored: Sequence[Tensor],
        out: Tensor,
        working: torch.dtype,
        space: Workspace,
    ) -> bool:
        """Add up anew the elements whose exponents are so far apart that the working dtype rounded their numerator.

        Returns:
            False, with nothing done, where a numerator may be too large for fp32.
        """
        integer, shift = STORED[self._stored]
        bits = [each.view(integer) for each in (stored if self._as_stored else terms)]
        apart = min(self._apart[working] << shift, torch.iinfo(integer).max)
        guard, limit = 0, torch.iinfo(integer).max
        if working is torch.float32:
            limit = self._largest_field << shift
            guard = 0 if self._stored is torch.float16 else self._least_field << shift
        found = _Exponents(bits, space)
        if found.largest > limit:
            return False
        places = found.far_apart(apart, guard)
        if not len(places):
            return True
        columns = [term.numpy()[places].astype(np.float64) for term in terms]
        total, inexact = _sum(columns, self._numerators)
        out.numpy()[places] = self._decided(columns, total / self._denominator, inexact)
        return True

    def _bounded(
        self, terms: Sequence[Tensor], out: Tensor, doubles: Tensor, spare: Tensor, space: Workspace
    ) -> None:
        """The sum with weights rounded to fp64; what the bound of its error leaves open, in integers."""
        torch.mul(doubles.copy_(terms[0]), self._shares[0], out=doubles)
        for term, share in zip(terms[1:], self._shares[1:], strict=True):
            doubles.add_(spare.copy_(term), alpha=share)
        out.copy_(doubles)
        # Infinite where fp64 cannot hold the sum: then every element is open.
        largest = [max(abs(float(end)) for end in torch.aminmax(term)) for term in terms]
        total = sum(abs(share) * size for share, size in zip(self._shares, largest, strict=True))
        error = 1.01 * (len(terms) + 2) * 2.0**-53 * total + UNDERFLOW if total else 0.0
        if self._dtype is torch.float32:
            # A unit in the last place of y is more than 2^-53 |y|: MANY of them, where |y| is not smaller than this.
            values, places, least = doubles, MANY, error * 2.0**53 / MANY
        else:
            # Half a unit in the last place of y in fp32 is more than 2^-25 |y|: only a midpoint itself is open.
            values, places, least = out, 0, error * 2.0**25
        integer, half = INTEGERS[values.dtype]
        low, flags = space.low(len(out), half), space.flags(len(out))[0]
        # A midpoint has a one and then zeros in the digits that will be dropped.
        dropped = DIGITS[values.dtype] - DIGITS[self._dtype]
        np.copyto(low, values.view(integer).numpy(), casting="unsafe")
        # Unsigned numbers wrap around, so one comparison sees both sides of the middle.
        low -= half((1 << (dropped - 1)) - places)
        low &= half((1 << dropped) - 1)
        np.less_equal(low, half(2 * places), out=flags)
        magnitudes = torch.abs(values, out=space.like(values))
        # Below the smallest normal number the midpoints are others.
        least = max(least, float(torch.finfo(self._dtype).smallest_normal))
        # In fp32 the least may be infinite: then every element is open.
        with np.errstate(over="ignore"):
            flags |= ~(magnitudes.numpy() >= least)
        open_places = np.flatnonzero(flags)
        columns = [term.numpy()[open_places].astype(np.float64) for term in terms]
        anything = np.any([column != 0 for column in columns], axis=0)
        out.numpy()[open_places] = self._decided(columns, np.zeros(len(open_places)), anything)

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


class _Exponents:
    """How far apart the magnitudes of an element's terms are, in the bits they are stored in.

    Args:
        bits: of the terms, as signed integers.

    Attributes:
        smallest, largest: magnitude in the block.
    """

    def __init__(self, bits: Sequence[Tensor], space: Workspace) -> None:
        self._bits, self._most, self._space = bits, torch.iinfo(bits[0].dtype).max, space
        low, apart, other = space.integers(len(bits[0]), bits[0].dtype)
        torch.bitwise_and(bits[0], self._most, out=low)
        ends = [torch.aminmax(low)]
        if len(bits) == 2:
            torch.bitwise_and(bits[1], self._most, out=other)
            ends.append(torch.aminmax(other))
            torch.sub(low, other, out=apart).abs_()
            self._lowest: Sequence[Tensor] = (low, other)
        else:
            high = apart.copy_(low)
            for each in bits[1:]:
                torch.bitwise_and(each, self._most, out=other)
                ends.append(torch.aminmax(other))
                torch.maximum(high, other, out=high)
                torch.minimum(low, other, out=low)
            torch.sub(high, low, out=apart)
            self._lowest = (low,)
        self._apart = apart.numpy()
        self.smallest = min(int(each.min) for each in ends)
        self.largest = max(int(each.max) for each in ends)

    def far_apart(self, apart: int, guard: int) -> Any:
        """The elements with magnitudes more than `apart` apart, or one below `guard`.

        Zeros add nothing to a sum. They have the smallest magnitude of all, so where many elements are found, those are
        left out that only a zero brought in.
        """
        if self.smallest >= guard and self.largest - self.smallest <= apart:
            return np.empty(0, dtype=np.int64)
        flags, more = self._space.flags(len(self._apart))
        np.greater(self._apart, apart, out=flags)
        if self.smallest < guard:
            for each in self._lowest:
                flags |= np.less(each.numpy(), guard, out=more)
        places = _few(flags)
        if len(places) <= CROWD * len(flags):
            return places
        magnitudes = np.stack([each.numpy()[places] & self._most for each in self._bits])
        low = np.where(magnitudes == 0, self._most, magnitudes).min(0)
        return places[(magnitudes.max(0).astype(np.int64) - low > apart) | (low < guard)]


def _few(flags: Any) -> Any:
    """The places of a few flags among many: words of eight first."""
    whole = len(flags) // 8 * 8
    words = np.flatnonzero(flags[:whole].view(np.uint64) != 0)
    rows, columns = np.nonzero(flags[:whole].reshape(-1, 8)[words])
    return np.concatenate([words[rows] * 8 + columns, whole + np.flatnonzero(flags[whole:])])


def _sum(columns: Sequence[Any], weights: Sequence[int]) -> tuple[Any, Any]:
    """The weighted sum in fp64, and where an addition rounded (Knuth's TwoSum); products are known to be exact."""
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


def _odd(values: Any, rest: Any) -> Any:
    """Rounded values and the sign of what was cut off: where that is not zero, the odd one of the two neighbours."""
    integer = np.int32 if values.dtype == np.float32 else np.int64
    even = (values.view(integer) & 1) == 0
    ends = np.copysign(np.inf, rest).astype(values.dtype)
    return np.where(even & (rest != 0), np.nextafter(values, ends), values)
