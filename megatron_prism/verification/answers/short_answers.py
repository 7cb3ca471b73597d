"""Grading a short answer: a word, a phrase or a number, extracted like a mathematical answer."""

from __future__ import annotations

import re

from megatron_prism.verification.answers.math_answers import extract_math, math_equal

_TEXT = re.compile(r"\\(?:text|textbf|mathbf|mathrm|textrm|mbox)\s*\{([^{}]*)\}")
_NUMBER = re.compile(r"\d")


def extract_short(completion: str) -> str | None:
    """The answer in a completion, or None; extracted like a mathematical answer."""
    return extract_math(completion)


def short_equal(answer: str, reference: str) -> bool:
    """Whether both are the same text, ignoring case, spacing, `\\text{}` and a final full stop.

    If both contain a digit, they may be numbers, and `math_equal` decides: `0.5` equals `1/2`.
    """
    if _words(answer) == _words(reference):
        return True
    if not (_NUMBER.search(answer) and _NUMBER.search(reference)):
        return False
    return math_equal(answer, reference)


def _words(text: str) -> str:
    plain = _TEXT.sub(r"\1", text).replace("$", " ").replace("~", " ").replace("\\ ", " ")
    return "".join(plain.split()).casefold().rstrip(".")
