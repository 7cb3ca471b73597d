from __future__ import annotations

import pytest

from megatron_prism.verification.answers.equality import same_answer

# Answers that must not earn, each the kind of a published complaint; the comment is the reading that would let it pass.
FALSE_RIGHTS = [
    ("listen", "silent"),  # products of letters
    ("CO2", "C2O"),
    ("AB", "BA"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),  # an absolute tolerance
    ("2024-01-15", "2008"),  # a difference of numbers
    ("5 kg", "5 g"),  # dropped units
    ("5\\text{ million}", "5"),
    ("101_2", "101_3"),  # dropped bases
    ("7 \\text{ is wrong}", "7"),  # dropped words
    ("1=2=3=7", "7"),  # the last side of a chain
    ("12:30", "24:60"),  # a quotient
    ("7, 8", "7"),  # one of several candidates
    ("7'", "7"),  # a dropped sign
    (r"\sqrt{x^2}", "x+0"),  # equal at positive points only
    ("x=6", "x=5"),
    ("(0,1)", "[0,1]"),
]
EQUAL = [
    (r"0.0833333333333333", r"\frac{1}{12}"),
    ("1.41421356237", r"\sqrt2"),
    (r"\ln(x^2)", r"2\ln x"),
    ("2x+4y-3=0", r"y=-\frac12 x+\frac34"),
    (r"|x-2|<3", "(-1,5)"),
    (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)"),
    (r"\frac{\pi}{6}\text{ rad}", r"30^\circ"),
    ("2 hours 15 minutes", "135 minutes"),
    (r"9.8\,\mathrm{m\,s^{-2}}", "9.8 m/s^2"),
    ("10 m/s", "36 km/h"),
    ("H₂O", "H_2O"),
    (r"2\sqrt{3}\approx 3.46", r"2\sqrt3"),
]


@pytest.mark.parametrize(("answer", "gold"), FALSE_RIGHTS)
def test_what_must_not_earn_does_not(answer, gold):
    assert not same_answer(answer, gold)
    # The pair is not simply unreadable: each side equals itself.
    assert same_answer(gold, gold)
    assert same_answer(f" {answer} ", answer)


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal_in_another_notation(answer, gold):
    assert same_answer(answer, gold)


def test_a_tolerance_is_relative_and_only_where_it_is_asked_for():
    assert not same_answer("9.7", "9.8")
    assert same_answer("9.7", "9.8", tolerance=0.05)
    assert not same_answer("9.0", "9.8", tolerance=0.05)
    assert not same_answer("2e-20", "1e-20", tolerance=0.05)
    assert same_answer(r"3.1 \text{ m}", r"\pi\text{ m}", tolerance=0.05)
