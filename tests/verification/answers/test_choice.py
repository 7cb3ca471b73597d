from __future__ import annotations

import pytest

from megatron_prism.verification.grade import grade


@pytest.mark.parametrize(
    ("completion", "extracted"),
    [
        (r"The answer is \boxed{C}.", "C"),
        (r"\boxed{\text{C}}", "C"),
        (r"\boxed{(c)}", "C"),
        (r"\boxed{C. Mitochondria}", "C"),
        ("it must be (A) or (C)", None),
        ("the answer is (C), because (A) and (B) fail", "C"),
        (r"<think>\boxed{A}</think> so (C)", "C"),
        (r"\boxed{(A)(B)(C)(D)}", None),
        (r"\boxed{Carbon}", None),
        (r"\boxed{CA}", None),
        (r"\boxed{12}", None),
        ("A cat", None),
        ("", None),
    ],
)
def test_letter(completion, extracted):
    made = grade("choice", completion, "C")
    assert made.extracted == extracted
    assert made.correct is (extracted == "C")
    assert made.reason == ("correct" if extracted else "no_answer")


@pytest.mark.parametrize("gold", ["J", "(J)", "J.", r"\text{J}", "j"])
def test_ten_options_and_every_spelling_of_the_reference(gold):
    assert grade("choice", r"\boxed{J}", gold).correct
    assert not grade("choice", r"\boxed{I}", gold).correct


@pytest.mark.parametrize(
    ("completion", "extracted"),
    [
        ("The answer is A. Or B.", None),
        ("The answer is A, or maybe B.", None),
        ("Answer: A; B", None),
        ("Answer: A. B. C. D.", None),
        ("A\nB\nC\nD", None),
        ("Answer: C\n\nC", "C"),
        ("The answer is C. B is wrong.", "C"),
        ("not (A)", None),
        ("I rule out (A)", None),
        ("(A) cannot be right", None),
        ("since it is not large, (C)", "C"),
        ("I don't think the answer is A", None),
        ("Suppose the answer is A", None),
        ("The answer is A. Actually, B.", None),
        ("The answer is C. Actually, I checked it.", "C"),
        ("Answer: A? No.", None),
        ("not A but B", "B"),
        ("indeed C", "C"),
        (r"\boxed{B. False}", "B"),
        (r"\boxed{C. No change}", "C"),
        (r"\boxed{B. Not enough information}", "B"),
        (r"\boxed{A. is false}", None),
        (r"\boxed{A. no}", None),
    ],
)
def test_letter_of_an_option_or_none(completion, extracted):
    assert grade("choice", completion, "C").extracted == extracted


def test_another_letter_is_wrong():
    made = grade("choice", r"\boxed{B}", "C")
    assert (made.correct, made.reason) == (False, "wrong")
