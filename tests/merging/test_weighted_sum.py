"""The weighted sum compared with `fractions.Fraction`: random numbers, ties, and cases where floats fail."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from megatron_prism.merging.exact.weighted_sum import ExactSum
from megatron_prism.merging.exact.workspace import Workspace
from megatron_prism.merging.methods import linear

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Digits of the significand, the smallest exponent of the last place, and the largest number.
FORMATS = {
    BF16: (8, -133, 3.3895313892515355e38),
    FP16: (11, -24, 65504.0),
    FP32: (24, -149, 3.4028234663852886e38),
}
COUNT = 700


def rounded(exact: Fraction, dtype: torch.dtype) -> float:
    """To nearest, ties to even, from the definition; nothing here is floating-point arithmetic."""
    digits, finest, largest = FORMATS[dtype]
    if not exact:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits + 1, finest)
    # Fraction's round() takes ties to even.
    value = round(size / unit) * unit
    found = math.inf if value > Fraction(largest) else float(value)
    return math.copysign(found, exact)


def reference(terms: list[torch.Tensor], weights: list[Fraction], dtype: torch.dtype) -> torch.Tensor:
    columns = [list(map(Fraction, term.double().tolist())) for term in terms]
    sums = (sum(w * x for w, x in zip(weights, row, strict=True)) for row in zip(*columns, strict=True))
    return torch.tensor([rounded(each, dtype) for each in sums], dtype=torch.float64).to(dtype)


def exact_sum(terms: list[torch.Tensor], weights: list[Fraction], dtype: torch.dtype) -> torch.Tensor:
    found = torch.empty(len(terms[0]))
    made = ExactSum(weights, [term.dtype for term in terms], dtype)
    made([term.float() for term in terms], terms, found, Workspace(len(found)))
    return found.to(dtype)


def wrong(found: torch.Tensor, expected: torch.Tensor) -> int:
    """Numbers that differ; a zero has no sign in exact arithmetic."""
    return int((found != expected).sum())


def spread(dtype: torch.dtype, low: float, high: float, seed: int, count: int = COUNT) -> torch.Tensor:
    """Numbers of either sign with exponents from `low` to `high`."""
    generator = torch.Generator().manual_seed(seed)
    exponents = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (signs * torch.exp2(exponents)).to(dtype)


WEIGHTS = {
    "the paper's": ("0.15", "0.85"),
    "negative": ("-0.3", "1.3"),
    "thirds": ("1/3", "2/3"),
    "halves": ("0.5", "0.5"),
    "whole": ("3", "-2"),
    "long": ("0.12345678901234567890123", "0.87654321098765432109877"),
    "nine digits": ("0.123456789", "0.876543211"),
    "tiny": ("1e-30", "1"),
    "one": ("0.3",),
    "three": ("0.2", "0.3", "0.5"),
    "task arithmetic": ("0.1", "0.4", "0.5", "-0.7", "0.7"),
    "seven": ("1/7",) * 7,
}


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("name", WEIGHTS)
def test_random_numbers(name, dtype):
    weights = list(map(Fraction, WEIGHTS[name]))
    terms = [spread(dtype, -8, 2, seed) for seed in range(len(weights))]
    assert not wrong(exact_sum(terms, weights, dtype), reference(terms, weights, dtype))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("name", WEIGHTS)
def test_extreme_numbers_of_the_dtype(name, dtype):
    """From the smallest subnormal to the largest number: extreme values only."""
    weights = list(map(Fraction, WEIGHTS[name]))
    _, finest, largest = FORMATS[dtype]
    terms = [spread(dtype, finest, math.log2(largest), seed, 600) for seed in range(len(weights))]
    for place, term in enumerate(terms):
        term[:200] = spread(dtype, finest, finest + 12, 20 + place, 200)
        term[200:400] = spread(dtype, math.log2(largest) - 3, math.log2(largest), 40 + place, 200)
        term[400:450] = 0
    assert not wrong(exact_sum(terms, weights, dtype), reference(terms, weights, dtype))


def ties(dtype: torch.dtype, weights: list[Fraction], seed: int) -> list[torch.Tensor]:
    """Two terms whose exact sum is a midpoint of the dtype, or misses one by the last place of a term."""
    x, y = weights
    terms = [spread(dtype, -2, 2, seed), spread(dtype, -2, 2, seed + 1)]
    digits = FORMATS[dtype][0]
    found = []
    for a, b in zip(*(map(Fraction, term.tolist()) for term in terms), strict=True):
        exact = x * a + y * b
        if not exact:
            continue
        unit = Fraction(2) ** (math.frexp(float(exact))[1] - digits)
        middle = (math.floor(exact / unit) + Fraction(1, 2)) * unit
        other = torch.tensor(float((middle - y * b) / x), dtype=torch.float64).to(dtype)
        found.append((float(other), float(b)))
    return [torch.tensor(column, dtype=dtype) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(
    "pair", [("0.15", "0.85"), ("0.5", "0.5"), ("0.25", "0.75"), ("-0.5", "1.5"), ("0.3", "0.7")]
)
def test_ties_and_their_neighbours(pair, dtype):
    weights = list(map(Fraction, pair))
    terms = ties(dtype, weights, 3)
    expected = reference(terms, weights, dtype)
    assert not wrong(exact_sum(terms, weights, dtype), expected)
    if pair in (("0.15", "0.85"), ("0.3", "0.7")):
        # Negative control: weights, products and sums in fp32, as in an earlier version. The test must detect it.
        in_fp32 = linear([term.float() for term in terms], [float(weight) for weight in weights])
        assert wrong(in_fp32.to(dtype), expected)


def test_a_term_far_below_breaks_a_tie():
    """A term of 1e-30 next to terms of 1: fp32 and fp64 lose it and so round to the wrong side of the midpoint."""
    middle = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8], dtype=FP32).repeat(3)
    tiny = torch.tensor([1e-30, 0.0, -1e-30], dtype=FP32).repeat_interleave(3)
    for weights in (["1", "1"], ["1", "1e-5"], ["1", "0.123456789012345678"]):
        exact = list(map(Fraction, weights))
        for terms in ([middle, tiny], [tiny, middle]):
            for dtype in (BF16, FP32):
                ordered = exact if terms[0] is middle else exact[::-1]
                assert not wrong(exact_sum(terms, ordered, dtype), reference(terms, ordered, dtype))
    assert len(set(exact_sum([middle, tiny], [Fraction(1)] * 2, BF16)[::3].tolist())) == 2


def test_sums_that_are_zero_or_nearly_zero():
    """0.1 * 3 - 0.3 is zero, but 5e-17 in floats; after a cancellation every remaining digit matters."""
    three, one = torch.full((50,), 3.0), torch.ones(50)
    for dtype in (BF16, FP16, FP32):
        assert not exact_sum(
            [three.to(dtype), one.to(dtype)], [Fraction("0.1"), Fraction("-0.3")], dtype
        ).any()
    for dtype in (BF16, FP16, FP32):
        low, high = (-20, -14) if dtype is FP16 else (-40, -30)
        same, left = spread(dtype, -4, 4, 1), spread(dtype, low, high, 2)
        terms = [same, same, left]
        for typed in ("0.3", "1e-7", "0.123456789012345678"):
            weights = [typed, f"-{typed}", "1"]
            exact = list(map(Fraction, weights))
            assert not wrong(exact_sum(terms, exact, dtype), reference(terms, exact, dtype))


@pytest.mark.parametrize("dtypes", [(BF16, FP32), (FP32, BF16), (FP16, BF16), (BF16, FP16, FP32)])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_models_of_several_dtypes(dtypes, dtype):
    weights = [Fraction("0.4"), Fraction("0.35"), Fraction("0.25")][: len(dtypes)]
    terms = [spread(each, -6, 3, seed, 700) for seed, each in enumerate(dtypes)]
    assert not wrong(exact_sum(terms, weights, dtype), reference(terms, weights, dtype))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_sums_at_the_largest_finite_number(dtype):
    """Half a unit beyond the largest number is a tie between it and the next power of two, which is infinite."""
    largest = FORMATS[dtype][2]
    unit = largest - float(torch.tensor(largest, dtype=dtype).nextafter(torch.tensor(0.0, dtype=dtype)))
    top = torch.tensor([largest] * 5 + [-largest] * 2, dtype=dtype)
    more = torch.tensor([unit * part for part in (0.0, 0.25, 0.5, 0.75, 1.0, -0.25, -0.5)], dtype=dtype)
    weights = [Fraction(1), Fraction(1)]
    found = exact_sum([top, more], weights, dtype)
    assert not wrong(found, reference([top, more], weights, dtype))
    assert found.isinf().tolist() == [False, False, True, True, True, False, True]
    # Products beyond fp32 whose sum is an ordinary number.
    assert not wrong(exact_sum([top, top], [Fraction(300), Fraction("-299.5")], dtype), top / 2)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_sums_with_many_zeros(dtype, count):
    """A pruned model: zero has the smallest exponent of all, far from every other."""
    weights = [Fraction("0.3"), Fraction("0.6"), Fraction("-0.1")][:count]
    terms = [spread(dtype, -8, 2, seed) for seed in range(count)]
    for place, term in enumerate(terms):
        term[place :: place + 2] = 0
    terms[0][:50], terms[1][:50] = 2.0**-14, 2.0**10
    assert not wrong(exact_sum(terms, weights, dtype), reference(terms, weights, dtype))


def test_nan_and_infinity_spread():
    for weights in (["0.15", "0.85"], ["0.2", "0.3", "0.5"], ["0.123456789012345", "0"]):
        terms = [torch.ones(3, dtype=BF16) for _ in weights]
        terms[0][1], terms[0][2] = math.nan, math.inf
        found = exact_sum(terms, list(map(Fraction, weights)), BF16)
        assert found.isfinite().tolist() == [True, False, False]


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_fp32_give_no_warning():
    """Where the bound of the error is larger than any fp32 number, every element is added up in integers."""
    terms = [spread(FP32, 100, 127, seed, 60) for seed in range(2)]
    weights = [Fraction("1.2345678901234567e30"), Fraction("-1.2345678901234567e30")]
    for dtype in (BF16, FP16, FP32):
        assert not wrong(exact_sum(terms, weights, dtype), reference(terms, weights, dtype))
    infinite = [torch.tensor([math.inf, 1.0]), torch.tensor([1.0, math.inf])]
    assert not exact_sum(infinite, [Fraction(0), Fraction(1)], BF16).isfinite().any()
