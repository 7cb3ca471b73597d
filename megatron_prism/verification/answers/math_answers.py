"""Grading a mathematical answer: extract it, compare it as text, and use math-verify only if the text does not decide.

Extraction follows open-instruct's order: the last \\boxed{}, else "the answer is X", else the last $...$. A bare last
number does not count: it would reward a base model for stopping at the right moment.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from megatron_prism.verification.answers.extract import final_part, last_boxed, tail

# Longer than any reference answer. Longer text is not sent to sympy.
LONGEST_ANSWER = 10_000

_STATED = re.compile(r"answer\s*(?:is|:|=)\s*", re.IGNORECASE)
_INLINE = re.compile(r"\$([^$\n]+)\$")
_INTEGER = re.compile(r"([+-]?)0*(\d+)(?:\.0+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
_SPACING = re.compile(r"\\left|\\right|\\[!,;: ]|\s+|\$")


def extract_math(completion: str) -> str | None:
    """The answer in a completion, or None."""
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

    Strings that differ only in spacing are equal, and different integers differ. math-verify decides all other cases.
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
    """Import sympy (two seconds or more) and math-verify, and let math-verify build its grammar tables."""
    _verify(r"\sqrt{x}", r"x^{1/2}")


def _verify(answer: str, reference: str) -> bool:
    from math_verify import verify

    # math-verify's own time limits are signal alarms, which C code ignores; the pool's limit replaces them. Its verdict
    # is not symmetric: the reference is the first argument.
    return bool(verify(_parse_reference(reference), _parse(answer), timeout_seconds=None))


def _parse(text: str) -> Any:
    from math_verify import parse

    # Both sides are put into a box: math-verify does not parse a bare (1, 2) like $(1, 2)$.
    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)


@lru_cache(maxsize=256)
def _parse_reference(text: str) -> Any:
    return _parse(text)


def _trim(text: str) -> str:
    """A stated answer without emphasis, dollar signs and the rest of its sentence."""
    inner = _INLINE.search(text)
    if inner:
        return inner.group(1).strip()
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0].strip(" *`:")


def _normal(text: str) -> str:
    text = _SPACING.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def _integer(text: str) -> tuple[str, str] | None:
    """Sign and digits of an integer, as text: converting a megabyte of digits to a number takes minutes."""
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = match.group(2)
    return ("-" if match.group(1) == "-" and digits != "0" else "", digits)
