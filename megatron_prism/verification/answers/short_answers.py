"""Grading a short answer: a word, a phrase, a formula, a number or a quantity, extracted like a mathematical answer."""

from __future__ import annotations

import unicodedata

from megatron_prism.verification.answers.equality import same_answer
from megatron_prism.verification.answers.math_answers import extract_math


def extract_short(completion: str) -> str | None:
    """The answer in a completion, or None; extracted like a mathematical answer."""
    return extract_math(completion)


def short_equal(answer: str, reference: str, tolerance: float = 0.0) -> bool:
    """Whether both mean the same: as mathematics does, and accents written as one character or two are one."""
    left, right = (unicodedata.normalize("NFC", text) for text in (answer, reference))
    return same_answer(left, right, tolerance)
