"""The weighted sum beside `fractions.Fraction`, element by element: random numbers, ties, and what breaks floats."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from megatron_prism.merging.exact import ExactSum, Workspace
from megatron_prism.merging.methods import linear

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Digits of the significand, the smallest exponent of the last place, and the largest number.
FORMATS = {BF16: (8, -133, 3.3895313892515355e38), FP16: (11, -24, 65504.0), FP32: (24, -149, 3.4028234663852886e38)}
COUNT = 4000


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
    made([term.float() for term in terms], found, Workspace(len(found)))
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
    "three": ("0.2", "0.3", "0.5"),
    "task arithmetic": ("0.1", "0.4", "0.5", "-0.7", "0.7"),
    "seven": ("1/7",) * 7,
}
RANGES = {BF16: (-8, 2), FP16: (-8, 2), FP32: (-8, 2)}


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("name", WEIGHTS)
def test_random_numbers(name, dtype):
    weights = list(map(Fraction, WEIGHTS[name]))
    terms = [spread(dtype, -8, 2, seed) for seed in range(len(weights))]
    assert not wrong(exact_sum(terms, weights, dtype), reference(terms, weights, dtype))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("name", WEIGHTS)
def test_whatever_the_dtype_can_hold(name, dtype):
    """From the smallest subnormal to the largest number: nothing but extremes."""
    weights = list(map(Fraction, WEIGHTS[name]))
    _, finest, largest = FORMATS[dtype]
    terms = [spread(dtype, finest, math.log2(largest), seed, 2000) for seed in range(len(weights))]
    for place, term in enumerate(terms):
        term[:400] = spread(dtype, finest, finest + 12, 20 + place, 400)
        term[400:800] = spread(dtype, math.log2(largest) - 3, math.log2(largest), 40 + place, 400)
        term[800:900] = 0
    assert not wrong(exact_sum(terms, weights, dtype), reference(terms, weights, dtype))
