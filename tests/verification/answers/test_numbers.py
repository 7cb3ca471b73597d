from __future__ import annotations

import time
from fractions import Fraction

import pytest

from megatron_prism.verification.answers.notation import normalize
from megatron_prism.verification.answers.numbers import number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("007", 7),
        ("-0", 0),
        ("1,000,000.5", Fraction(2000001, 2)),
        ("1 000", 1000),
        (r"1\,000", 1000),
        ("1_000", 1000),
        (".5", Fraction(1, 2)),
        (r"\frac12", Fraction(1, 2)),
        ("2 1/3", Fraction(7, 3)),
        (r"-1\frac{1}{2}", Fraction(-3, 2)),
        ("½", Fraction(1, 2)),
        ("2½", Fraction(5, 2)),
        ("3×10^5", 300000),
        ("1e-3", Fraction(1, 1000)),
        ("2^{100}", 2**100),
        ("5!", 120),
        (r"\binom{5}{2}", 10),
        (r"0.\overline{3}", Fraction(1, 3)),
        ("0.333...", Fraction(1, 3)),
        ("0.1+0.2", Fraction(3, 10)),
        ("2(3)", 6),
    ],
)
def test_numbers_are_exact(text, value):
    assert number(normalize(text)).value == value


NO_NUMBERS = [
    *("6 7", "1,2", "10,00", "5 000 0", "1/0", "x", "1=1"),
    *("9^{9^{9}}", "100000!", "", "-", "1..2", "(" * 5000),
]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_everything_else_is_no_number(text):
    start = time.monotonic()
    assert number(normalize(text)) is None
    assert time.monotonic() - start < 5
