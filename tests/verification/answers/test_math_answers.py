from __future__ import annotations

import sys

import pytest

from megatron_prism.verification.answers.math_answers import extract_math
from megatron_prism.verification.grade import GradeItem, grade, grade_all
from megatron_prism.verification.settings import GradingSettings


@pytest.fixture(scope="module")
def pool():
    # Enough for a much slower and busy machine; only a hang takes this long.
    with GradingSettings(workers=1, timeout_seconds=3.0).open_pool() as made:
        yield made


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r" <think>\boxed{3}</think> The answer is \boxed{7}.", "7"),
        ("<think>x</think> The answer is 7.", "7"),
        ("So the final answer is: $x^2$. Done.", "x^2"),
        ("Answer: **3.5**", "3.5"),
        ("Hence $y = 1$ and so $42$", "42"),
        ("The answer is 1. No, the answer is 2.", "2"),
        ("I see 17 apples and 4 pears", None),
        ("", None),
        (r"\boxed{}", None),
        (r"<think>\boxed{7}</think>", None),
    ],
)
def test_extraction(completion, expected):
    assert extract_math(completion) == expected


EQUAL = [
    ("7", "7"),
    ("+7.0", "7"),
    ("-007", "-7"),
    ("1,234", "1234"),
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    ("1/2", "0.5"),
    (r"\frac{2}{4}", "1/2"),
    ("x + y", "y + x"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("(1,2)", r"\left( 1, 2 \right)"),
    (r"\{2, 1\}", r"\{1,2\}"),
]
DIFFERENT = [("8", "7"), ("-7", "7"), ("0.51", "1/2"), ("x - y", "y - x"), ("(2,1)", "(1,2)"), ("eight", "7")]


def test_equal_and_different_answers(pool):
    items = [GradeItem("math", rf"\boxed{{{a}}}", b) for a, b in EQUAL + DIFFERENT]
    grades = grade_all(items, pool)
    assert [g.correct for g in grades] == [True] * len(EQUAL) + [False] * len(DIFFERENT)
    assert {g.reason for g in grades} == {"correct", "wrong"}


def test_a_power_tower_is_not_computed(pool):
    towers = [r"9^{9^{9}}", r"7^{7^{7^{7^{7}}}}", r"1000000!", r"\sum_{k=1}^{10^9} \frac{1}{k}"]
    items = [GradeItem("math", rf"\boxed{{{tower}}}", "5") for tower in towers]
    assert {each.reason for each in grade_all(items, pool)} == {"wrong"}


@pytest.mark.parametrize("answer", [r"\frac{1}{" * 100_000 + "1" + "}" * 100_000, "9" * 10**6])
def test_a_megabyte_is_wrong_and_runs_into_no_limit(answer):
    # Neither answer may be passed to sympy. The limit leaves room for a slow machine; only a hang takes this long.
    items = [GradeItem("math", rf"\boxed{{{answer}}}", "5"), GradeItem("math", r"\boxed{5}", "5")]
    with GradingSettings(workers=1, timeout_seconds=30.0).open_pool() as patient:
        assert [each.reason for each in grade_all(items, patient)] == ["wrong", "correct"]


def test_integers_do_not_need_sympy():
    loaded = "math_verify" in sys.modules
    assert grade("math", r"\boxed{12}", "12").correct
    assert not grade("math", r"\boxed{13}", "12").correct
    assert ("math_verify" in sys.modules) == loaded
