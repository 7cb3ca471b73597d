"""Values as text: two values of plain types have the same text if and only if they are equal.

The program's process converts a result to this text, and the host compares it with the text of the expected value. So
the program never sees the expected value, an object that claims to equal everything has no text, and the host does not
parse anything that a program wrote.
"""

from __future__ import annotations

import decimal
import fractions
import json
import math
from typing import Any


def plain(value: Any, tuples_are_lists: bool = False) -> str:
    """`value` as ASCII text without line ends.

    Equality is Python's: `1 == 1.0 == True`, a set equals a frozenset, subclasses (named tuples, Counter, IntEnum)
    equal their base class. NaN does not equal itself, so it has no text.

    Args:
        tuples_are_lists: for expected values that come from JSON, which has no tuples.

    Raises:
        TypeError: for a value that contains anything except numbers, text, bytes, None, lists, tuples, sets and dicts.
        RecursionError: if values are nested too deeply, or a list contains itself.
    """
    if value is None:
        return "none"
    if isinstance(value, (int, float, complex, decimal.Decimal, fractions.Fraction)):
        return _number(value)
    if isinstance(value, str):
        return json.dumps(str.__str__(value))
    if isinstance(value, (bytes, bytearray)):
        return f"b{bytes(value).hex()}"
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) or tuples_are_lists else "tuple"
        return f"{kind}[{','.join(plain(item, tuples_are_lists) for item in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"set[{','.join(sorted(plain(item, tuples_are_lists) for item in value))}]"
    if isinstance(value, dict):
        pairs = (
            f"{plain(key, tuples_are_lists)}:{plain(item, tuples_are_lists)}"
            for key, item in dict.items(value)
        )
        return f"dict[{','.join(sorted(pairs))}]"
    raise TypeError(f"{type(value).__name__} is not a plain value")


def _number(value: Any) -> str:
    if isinstance(value, complex):
        if value.imag:
            return f"complex[{_number(value.real)},{_number(value.imag)}]"
        value = value.real
    if isinstance(value, int):
        # In hexadecimal: converting a million digits to decimal takes minutes.
        return int.__format__(value, "x")
    if not math.isfinite(value):
        if value != value:
            raise TypeError("NaN equals nothing")
        return "inf" if value > 0 else "-inf"
    exact = fractions.Fraction(value)
    top, bottom = exact.numerator, exact.denominator
    return f"{top:x}" if bottom == 1 else f"{top:x}/{bottom:x}"
