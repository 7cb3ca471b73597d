from __future__ import annotations

import time

import pytest

from megatron_prism.verification.answers.extract import boxed_answer, final_part, has_think_format


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{7}", "7"),
        (r"first \boxed{1}, then \boxed{ 2 }.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{1} and \boxed{\frac{1}{2}", "1"),
        (r"\boxed{3}, \boxed{5}", "3, 5"),
        (r"\boxed{3} is too small, so \boxed{5}", "5"),
        ("\x08oxed{7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed 7", "7"),
        ("no box", None),
        (r"\boxed{}", ""),
        ("\\boxed{a\\", None),
    ],
)
def test_boxed_answer(text, expected):
    assert boxed_answer(text) == expected


def test_a_megabyte_of_braces_takes_no_time():
    start = time.monotonic()
    assert boxed_answer(r"\boxed{" * 200_000) is None
    assert boxed_answer(r"\boxed" + "{" * 1_000_000) is None
    # Quadratic work would take hours.
    assert time.monotonic() - start < 60


def test_many_joined_boxes_are_read_in_linear_time():
    start = time.process_time()
    assert boxed_answer(r"\boxed{1}, " * 90_000) == ", ".join(["1"] * 90_000)
    # 0.15 s; inserting each part at the front takes 1.3 s.
    assert time.process_time() - start < 0.7


def test_final_part_is_what_follows_the_thinking():
    assert final_part("<think>a</think>b</think>c") == "c"
    assert final_part("no thinking") == "no thinking"
    assert final_part("a</think>b<think>never closed") == "b"


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (" <think>\nsteps\n</think>\nThe answer is 7.", True),
        ("<think></think>x", True),
        ("<think>steps</think>", False),
        ("<think>never closed", False),
        ("Sure! <think>steps</think> 7", False),
        ("steps</think> 7", False),
    ],
)
def test_think_format(text, holds):
    assert has_think_format(text) is holds
