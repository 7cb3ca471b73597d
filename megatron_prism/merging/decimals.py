"""Reads weights exactly as the user typed them: `0.15` is 15/100 and not the nearest binary fraction.

A float (from a recipe in Python or a YAML file) stands for the shortest decimal that is read as this float. That is the
number that was typed, if it has at most 15 digits. Text is read digit by digit, and may be a fraction such as `1/3`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.models.components import COMPONENTS

# Longer numbers are typing errors, and 1e-999999999 as a fraction would fill the memory.
MAX_DIGITS = 400


def exact_number(value: Any, where: str) -> Fraction:
    """Text, a float or a whole number as a fraction.

    Raises:
        ConfigError: naming `where`, if the value is not a finite number or has more than 400 digits.
    """
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(
            f"{where}: {value!r} is not a number; write a decimal such as 0.15, or a fraction such as 1/3"
        )
    text = value.strip() if isinstance(value, str) else repr(value)
    parts = [_decimal(part, text, where) for part in text.split("/")]
    if len(parts) > 2 or (len(parts) == 2 and not parts[1]):
        raise ConfigError(f"{where}: '{text}' is not a number")
    found = parts[0] / parts[1] if len(parts) == 2 else parts[0]
    try:
        float(found)
    except OverflowError:
        raise ConfigError(f"{where}: '{text}' is too large") from None
    return found


def _decimal(part: str, text: str, where: str) -> Fraction:
    try:
        found = Decimal(part)
    except InvalidOperation:
        raise ConfigError(f"{where}: '{text}' is not a number") from None
    if not found.is_finite():
        raise ConfigError(f"{where}: '{text}' is not a finite number")
    _, digits, exponent = found.as_tuple()
    if len(digits) + abs(int(exponent)) > MAX_DIGITS:
        raise ConfigError(f"{where}: '{text[:40]}' has more than {MAX_DIGITS} digits; write a shorter number")
    return Fraction(found)


def parse_weights(text: str, option: str) -> dict[str, Fraction]:
    """'attention=0.3,mlp=0.1' -> {"attention": 3/10, "mlp": 1/10}; a ConfigError names the wrong part."""
    found: dict[str, Fraction] = {}
    for item in text.split(","):
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(f"{option} '{item}': write COMPONENT=WEIGHT, for example attention=0.3")
        if name not in COMPONENTS:
            raise ConfigError(f"{option} '{item}': no component '{name}'{suggest(name, COMPONENTS)}")
        if name in found:
            raise ConfigError(f"{option}: '{name}' is named twice")
        found[name] = exact_number(value, f"{option} '{item}'")
    return found


def listed(numbers: Sequence[Fraction]) -> str:
    """Numbers as a comma-separated list for a message."""
    return ", ".join(f"{float(number):g}" for number in numbers)


def shortest_decimal(number: Fraction) -> str:
    """A number as part of a folder's name: as it was typed, if it was typed with at most 15 digits."""
    value = float(number)
    return repr(int(value)) if value == math.trunc(value) and abs(value) < 1e15 else repr(value)
