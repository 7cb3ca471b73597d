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
        ("it must be (A) or (C)", "C"),
        (r"<think>\boxed{A}</think> so (C)", "C"),
        (r"\boxed{E}", None),
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


def test_another_letter_is_wrong():
    made = grade("choice", r"\boxed{B}", "C")
    assert (made.correct, made.reason) == (False, "wrong")
