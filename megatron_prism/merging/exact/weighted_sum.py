"""The correctly rounded weighted sum `sum_i w_i x_i` of the elements of several tensors.

Weights are fractions p_i / q over one denominator q. Stored numbers have few significant bits and the p_i are small,
so the numerator N = sum_i p_i x_i is exact in fp32 or fp64 unless the exponents of an element's terms are far apart.
`N / q` is rounded once to the working dtype (fp32 or fp64), and rounding that number to the result's dtype gives the
same as rounding the sum itself (see `largest_denominator`). Two kinds of elements need more work:

- fp64 is rounded to fp32 and then to a 16-bit dtype. The first rounding can give a midpoint although the fp64 number is
  none. Such elements are moved off the midpoint again.
- Elements with exponents far apart (`exponents`) are summed again in fp64. If a check shows that an addition was
  rounded, they are summed in Python's integers (`integers`).

Weights with many digits have no exact products; `long_weights` handles them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from megatron_prism.merging.exact.exponents import Exponents
from megatron_prism.merging.exact.float_bits import DIGITS, STORED, round_to_odd, sum_and_rounding
from megatron_prism.merging.exact.integers import IntegerSum
from megatron_prism.merging.exact.long_weights import BoundedSum
from megatron_prism.merging.exact.workspace import Workspace

# fp32 is the working dtype only if exponents may differ by at least this much before an element must be summed again.
# Few elements have exponents further apart.
MIN_FP32_DISTANCE = 8


def largest_denominator(working: torch.dtype, result: torch.dtype) -> int:
    """The largest q for which `N / q`, rounded to `working`, is a midpoint m of `result` only if it is exactly m.

    Say N - q m is not zero. It is a multiple of N's last place or of m's. With m in [2^e, 2^(e+1)), d digits of
    `working` and t of `result`, rounding the quotient hides at most q 2^(e - d) of it. N's last place is larger than
    that, and so is m's, which is 2^(e - t) or more, if q < 2^(d - t).
    """
    return 1 << (DIGITS[working] - DIGITS[result] - 1)


class ExactSum:
    """`sum_i w_i x_i` of elements of known dtypes, for a result of known dtype. It holds no data, so threads share it.

    Args:
        weights: of the terms, in their order.
        inputs: the dtypes in which the terms are stored: fp32, bf16 or fp16.
        dtype: of the result: one of these.
    """

    def __init__(
        self, weights: Sequence[Fraction], inputs: Sequence[torch.dtype], dtype: torch.dtype
    ) -> None:
        self._denominator = math.lcm(*(weight.denominator for weight in weights))
        self._numerators = [int(weight * self._denominator) for weight in weights]
        self._dtype = dtype
        self._one_stored_dtype = len(set(inputs)) == 1
        self._stored = inputs[0] if self._one_stored_dtype else torch.float32
        # Partial sums are multiples of the last place of the smallest term and at most
        # (sum_i |p_i|) 2^(largest exponent + 1): they are exact in d digits while exponents differ by at most
        # d - (digits stored) - log2(sum_i |p_i|).
        digits = max(DIGITS[each] for each in inputs)
        needed = digits + sum(map(abs, self._numerators)).bit_length()
        self._max_distance = {working: DIGITS[working] - needed for working in (torch.float32, torch.float64)}
        self._has_exact_products = self._max_distance[
            torch.float64
        ] >= 0 and self._denominator <= largest_denominator(torch.float64, torch.float32)
        self._in_fp32 = (
            dtype is not torch.float32
            and self._max_distance[torch.float32] >= MIN_FP32_DISTANCE
            and self._denominator <= largest_denominator(torch.float32, dtype)
        )
        # N is zero or at least the last place of a term. If every term has at least this exponent (as it is stored),
        # N / q is a normal number of fp32.
        self._min_exponent = 2 + digits + self._denominator.bit_length()
        # Below this exponent no partial sum is too large for fp32. Numbers stored in fp16 are never that large.
        self._max_exponent = 31 if self._stored is torch.float16 else 253 - (needed - digits)
        self._integers = IntegerSum(self._numerators, self._denominator, dtype)
        self._bounded = BoundedSum([float(weight) for weight in weights], self._integers, dtype)

    def __call__(
        self, terms: Sequence[Tensor], stored: Sequence[Tensor], out: Tensor, space: Workspace
    ) -> Tensor:
        """Fill `out` with fp32 numbers that become the correctly rounded sum when rounded to the result's dtype.

        For a 16-bit dtype they are on the same side of every midpoint as the sum; for fp32 they are the result. A sum
        that is too large becomes infinite. If a term is NaN or infinite, the result is not finite either.

        Args:
            terms: in fp32, flat, `[count]`; none shares memory with `out`.
            stored: the same numbers in the dtypes in which they are stored.
        """
        if self._in_fp32:
            self._quotient(terms, out)
            if self._sum_again(terms, stored, out, working=torch.float32, space=space):
                return out
        if not self._has_exact_products:
            self._bounded(terms, out, space)
            return out
        doubles, spare = space.doubles(out.numel())
        torch.mul(doubles.copy_(terms[0]), self._numerators[0], out=doubles)
        for term, numerator in zip(terms[1:], self._numerators[1:], strict=True):
            doubles.add_(spare.copy_(term), alpha=numerator)
        if self._denominator != 1:
            doubles.div_(self._denominator)
        out.copy_(doubles)
        if self._dtype is not torch.float32:
            self._move_off_midpoints(doubles, out, space)
        self._sum_again(terms, stored, out, working=torch.float64, space=space)
        return out

    def _quotient(self, terms: Sequence[Tensor], out: Tensor) -> None:
        """`N / q` in fp32."""
        torch.mul(terms[0], self._numerators[0], out=out)
        for term, numerator in zip(terms[1:], self._numerators[1:], strict=True):
            out.add_(term, alpha=numerator)
        if self._denominator != 1:
            out.div_(self._denominator)

    def _move_off_midpoints(self, doubles: Tensor, out: Tensor, space: Workspace) -> None:
        """Correct the numbers that became a midpoint of the 16-bit dtype when they were rounded from fp64 to fp32."""
        low, flags = space.low(len(out), np.uint16), space.flags(len(out))[0]
        # Of the digits that will be dropped, a midpoint has only zeros after the first. So do the 16-bit numbers.
        below = (1 << (DIGITS[torch.float32] - DIGITS[self._dtype] - 1)) - 1
        np.copyto(low, out.view(torch.int32).numpy(), casting="unsafe")
        np.equal(np.bitwise_and(low, np.uint16(below), out=low), 0, out=flags)
        places = np.flatnonzero(flags)
        exact, singles = doubles.numpy()[places], out.numpy()[places]
        moved = np.flatnonzero(np.isfinite(singles) & (exact != singles))
        out.numpy()[places[moved]] = round_to_odd(singles[moved], exact[moved] - singles[moved])

    def _sum_again(
        self,
        terms: Sequence[Tensor],
        stored: Sequence[Tensor],
        out: Tensor,
        *,
        working: torch.dtype,
        space: Workspace,
    ) -> bool:
        """Sum again the elements whose exponents are so far apart that the working dtype rounded their numerator.

        Returns:
            False, with nothing done, if a numerator may be too large for fp32.
        """
        integer, shift = STORED[self._stored]
        bits = [each.view(integer) for each in (stored if self._one_stored_dtype else terms)]
        max_distance = min(self._max_distance[working] << shift, torch.iinfo(integer).max)
        min_magnitude, max_magnitude = 0, torch.iinfo(integer).max
        if working is torch.float32:
            max_magnitude = self._max_exponent << shift
            min_magnitude = 0 if self._stored is torch.float16 else self._min_exponent << shift
        exponents = Exponents(bits, space)
        if exponents.largest > max_magnitude:
            return False
        places = exponents.far_apart(max_distance, min_magnitude)
        if not len(places):
            return True
        columns = [term.numpy()[places].astype(np.float64) for term in terms]
        total, inexact = sum_and_rounding(columns, self._numerators)
        out.numpy()[places] = self._integers.decide(columns, total / self._denominator, inexact)
        return True
