"""Grading a multiple-choice answer: one letter, A to D."""

from __future__ import annotations

import re

from megatron_prism.verification.answers.extract import final_part, last_boxed, tail

_WRAPPER = re.compile(r"\\(?:text|textbf|mathbf|mathrm|textrm)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Da-d])(?:\)|[.:]|$)")
_PARENTHESISED = re.compile(r"\(([A-D])\)")


def extract_choice(completion: str) -> str | None:
    """The letter in the last box (`\\boxed{C}`, `\\boxed{\\text{C}}`, `\\boxed{(C)}`), else the last (C)."""
    boxed = last_boxed(final_part(completion))
    if boxed is not None:
        match = _LETTER.match(_WRAPPER.sub(r"\1", boxed).strip())
        return match.group(1).upper() if match else None
    found = _PARENTHESISED.findall(tail(completion))
    return found[-1] if found else None
