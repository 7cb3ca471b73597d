"""How public harnesses grade: their rules for finding and comparing an answer, faults included."""

from __future__ import annotations

import math
import re

# lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml: the pattern of 'flexible-extract' and what its comparison ignores.
_FLEXIBLE_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = re.compile(r",|\$|(?s:.*#### )|\.$")
_LETTER = re.compile(r"\b[A-D]\b")
_BOXED_NUMBER = re.compile(r"\\boxed\s*\{\s*([-+]?[\d.,]+(?:[eE][-+]?\d+)?)")


def by_math_verify(completion: str, gold: str) -> bool:
    """math-verify's own reading of the whole completion and of the reference as a formula."""
    from math_verify import parse, verify

    # Its time limits are alarms, which do not work in every thread; the pool's limit replaces them.
    return bool(
        verify(
            parse(f"${gold}$", parsing_timeout=None),
            parse(completion, parsing_timeout=None),
            timeout_seconds=None,
        )
    )


def by_last_number(completion: str, gold: str) -> bool:
    """The last number of the completion, compared as text."""
    found = _FLEXIBLE_NUMBER.findall(completion)
    if not found:
        return False
    last = next(part for part in found[-1] if part)
    return _IGNORED.sub("", last).casefold() == _IGNORED.sub("", gold.strip()).casefold()


def by_last_letter(completion: str, gold: str) -> bool:
    """The last letter A to D that stands alone in the completion."""
    found = _LETTER.findall(completion)
    return bool(found) and found[-1] == gold.strip().strip("()")


def by_relative_difference(completion: str, gold: str) -> bool:
    """The number of the last box, within five per cent of the reference's number."""
    boxes = _BOXED_NUMBER.findall(completion)
    try:
        return bool(boxes) and math.isclose(float(boxes[-1].replace(",", "")), float(gold), rel_tol=0.05)
    except ValueError:
        return False
