"""Whether a program printed the expected output, by the rule of LiveCodeBench (lcb_runner/evaluation/testing_util.py).

White space around the whole output and around each line does not count. The outputs must have the same number of
lines, and two lines are equal if they are the same text, or if both consist of numbers and these are equal as decimal
numbers: `0.50` equals `0.5`, `5.0` equals `5` and `1e3` equals `1000`, but `0.30000000000000004` does not equal `0.3`.

A number is written in ASCII digits, with a sign, a fraction or an exponent. LiveCodeBench uses whatever Python's
`Decimal` reads, which includes `1_000`, digits of other scripts, and `inf`; here these are compared as text.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,18})?")


def normal_output(text: str) -> list[str]:
    """The lines of `text` without the white space around them and around the whole."""
    return [line.strip() for line in text.strip().split("\n")]


def same_output(printed: str, expected: list[str]) -> bool:
    """Whether `printed` is the output whose `normal_output` is `expected`."""
    lines = normal_output(printed)
    return len(lines) == len(expected) and all(map(_same_line, lines, expected))


def _same_line(printed: str, expected: str) -> bool:
    if printed == expected:
        return True
    ours, theirs = printed.split(), expected.split()
    return len(ours) == len(theirs) and all(map(_same_number, ours, theirs))


def _same_number(printed: str, expected: str) -> bool:
    if not (_NUMBER.fullmatch(printed) and _NUMBER.fullmatch(expected)):
        return False
    try:
        return Decimal(printed) == Decimal(expected)
    except InvalidOperation:
        # An exponent beyond what Decimal can hold.
        return printed == expected
