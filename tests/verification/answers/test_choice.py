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


def test_another_letter_is_wrong():
    made = grade("choice", r"\boxed{B}", "C")
    assert (made.correct, made.reason) == (False, "wrong")
