"""Grading a mathematical answer: find it, compare cheaply, and ask math-verify only when that is undecided.

Extraction follows open-instruct's order: last \\boxed{}, else "the answer is X", else the last $...$. A bare
last number is not taken: it would credit a base model for stopping at the right moment.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from megatron_prism.verification.answers.extract import final_part, last_boxed, tail

# Longer than any reference answer; what is longer is not sent to sympy.
LONGEST_ANSWER = 10_000

_STATED = re.compile(r"answer\s*(?:is|:|=)\s*", re.IGNORECASE)
_INLINE = re.compile(r"\$([^$\n]+)\$")
_INTEGER = re.compile(r"([+-]?)0*(\d+)(?:\.0+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
_SPACING = re.compile(r"\\left|\\right|\\[!,;: ]|\s+|\$")


def extract_math(completion: str) -> str | None:
    """The answer a completion gives, or None."""
    boxed = last_boxed(final_part(completion))
    if boxed is not None:
        return boxed or None
    end = tail(completion)
    stated = list(_STATED.finditer(end))
    if stated:
        return _trim(end[stated[-1].end() :].partition("\n")[0]) or None
    inline = _INLINE.findall(end)
    return inline[-1].strip() or None if inline else None


def math_equal(answer: str, reference: str) -> bool:
    """Whether `answer` means the same as `reference`.

    Equal strings (spacing aside) are equal and different integers differ; everything else goes to
    math-verify.
    """
    left, right = _normal(answer), _normal(reference)
    if left == right:
        return True
    integers = _integer(left), _integer(right)
    if None not in integers:
        return integers[0] == integers[1]
    if len(answer) > LONGEST_ANSWER:
        return False
    return _verify(answer, reference)


@lru_cache(maxsize=1)
def prepare() -> None:
    """Import what `math_equal` may need (sympy: two seconds and more) and let it build its grammar tables."""
    _verify(r"\sqrt{x}", r"x^{1/2}")


def _verify(answer: str, reference: str) -> bool:
    from math_verify import verify

    # math-verify's own limits are signal alarms, which C code ignores: the pool's limit replaces them. Its
    # verdict is not symmetric, the reference goes first.
    return bool(verify(_parse_reference(reference), _parse(answer), timeout_seconds=None))


def _parse(text: str) -> Any:
    from math_verify import parse

    # Both sides in a box: math-verify takes an unmarked (1, 2) and $(1, 2)$ for different things.
    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)


@lru_cache(maxsize=256)
def _parse_reference(text: str) -> Any:
    return _parse(text)


def _trim(text: str) -> str:
    """A stated answer without the sentence around it: emphasis, dollars, a final full stop."""
    inner = _INLINE.search(text)
    if inner:
        return inner.group(1).strip()
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0].strip(" *`:")


def _normal(text: str) -> str:
    text = _SPACING.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def _integer(text: str) -> tuple[str, str] | None:
    """Sign and digits of an integer, kept as text: converting a megabyte of digits takes minutes."""
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = match.group(2)
    return ("-" if match.group(1) == "-" and digits != "0" else "", digits)
