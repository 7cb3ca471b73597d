"""A value with a unit or a noun: `5 cm`, "3 red balls", `¤5`, "5 million", "2 hours 15 minutes"."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import islice

from megatron_prism.verification.answers.algebra import readable
from megatron_prism.verification.answers.braces import balanced
from megatron_prism.verification.answers.kinds import Expression, Quantity
from megatron_prism.verification.answers.number_words import PARTS, SCALES
from megatron_prism.verification.answers.numbers import Number, number
from megatron_prism.verification.answers.units import unit
from megatron_prism.verification.answers.words import has_words, is_noun_phrase

_UNFINISHED = re.compile(r"(?:[-+*/^_]|\\(?:cdot|times))$")
# A count of money: $1.5M.
_MONEY_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_MONEY_SCALED = re.compile(r'(-?[\d.,]+)\s*"?\s*([kKMBT])\s*"?')
# A unit as a fraction: \\frac{"m"}{"s"}.
_UNIT_FRACTION = re.compile(r"(.+?)\s*\\frac\s*\{([^{}]*)\}\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_CURRENCY = re.compile(r'"?\s*(USD|EUR|GBP|INR|₹|¥|CAD|AUD|JPY|Rs)\.?\s*"?\s*([\d.,]+)')
_ARC = re.compile(
    r"(\d+)\s*°\s*(\d+(?:\.\d+)?)\s*(?:'|\^\{?\\prime\}?)(?:\s*(\d+(?:\.\d+)?)\s*(?:''|\^\{?\\prime\\prime\}?))?"
)
# So many places are tried at which a unit could begin.
LONGEST_SEARCH = 8
_COMPOUND_PIECE = re.compile(r"(\d+(?:\.\d+)?) ([A-Za-z]+)")
_GLUED_UNIT = re.compile(
    r"(.*[\d})])\s*((?:[kcmnµ]?[mg]|cm|mm|km|kg|mg|ml|mL|kJ|kW|MW|Hz|kHz|MHz|Pa|kPa|mol|eV|min|sec|hrs?|lbs?|ft|mph|"
    r"(?:k|c|m)?m/s|km/h)(?:\^\{?-?\d\}?)?)"
)
_UNIT_START = re.compile(r'["°¢µΩ]|\(\s*(?=")|(?<=[\s\d})])\s*(?<!\\)(?<![A-Za-z\\])(?=[A-Za-zµ])')
_NOT_ONE_VALUE = re.compile(r"[,;:=<>&]|\\\\|\\(?:le|ge|ne|approx|equiv|in|to|cup)(?![A-Za-z])")


def is_algebra(text: str) -> bool:
    """A letter directly before a digit (`K2`) is an identifier, not a product."""
    identifier = re.search(r"(?<![A-Za-z\\])[A-Za-z]\d", re.sub(r"\\[A-Za-z]+", " ", text))
    return identifier is None and readable(text)


def value_of(text: str) -> Number | Expression | None:
    """The single value that normalized `text` is, without words or a unit; None if it is none."""
    found = number(text)
    if found is not None:
        return found
    if not text or _NOT_ONE_VALUE.search(text) or _UNFINISHED.search(text) or has_words(text):
        return None
    return Expression(text) if is_algebra(text) and balanced(text) else None


def quantity(text: str) -> Quantity | Number | None:
    """A value with a unit, with a noun, as money, or scaled by a word ("5 million"); None if `text` is none."""
    coded = _CURRENCY.fullmatch(text)
    if coded is not None and (amount := number(coded.group(2))) is not None:
        return Quantity(amount, coded.group(1).casefold())
    arc = _ARC.fullmatch(text)
    if arc is not None:
        degrees, minutes, seconds = (Fraction(part or 0) for part in arc.groups())
        return Quantity(Number(degrees + minutes / 60 + seconds / 3600), "°")
    if text.endswith("¤") and (amount := number(text[:-1])) is not None:
        return Quantity(amount, "¤")
    fraction = _UNIT_FRACTION.fullmatch(text)
    if fraction is not None and '"' in fraction.group(2) + fraction.group(3):
        value = value_of(fraction.group(1))
        name = f"{fraction.group(2)}/({fraction.group(3)})"
        if value is not None and unit(name) is not None:
            return Quantity(value, f'"{name}"')
    if text.startswith(("¤", "-¤")):
        scaled = _MONEY_SCALED.fullmatch(text.replace("¤", "", 1).strip())
        if scaled is not None and (amount := number(scaled.group(1))) is not None:
            return Quantity(Number(amount.value * _MONEY_SCALES[scaled.group(2)]), "¤")
        inner = _quantity_or_value(text.replace("¤", "", 1).strip())
        if isinstance(inner, Quantity):
            return Quantity(inner.value, "¤") if unit(inner.unit) in (None, unit("¤")) else None
        return None if inner is None else Quantity(inner, "¤")
    found = _compound(text) or _quantity_or_value(text)
    return found if isinstance(found, Quantity | Number) else None


def _quantity_or_value(text: str) -> Quantity | Number | Expression | None:
    value = value_of(text)
    if value is not None and not _GLUED_UNIT.fullmatch(text) and not re.search(r"[\d}]\s+[a-zA-Zµ]", text):
        return value
    glued = _GLUED_UNIT.fullmatch(text)
    if glued is not None and number(glued.group(1)) is not None and len(glued.group(2)) > 1:
        return Quantity(number(glued.group(1)) or Expression(text), glued.group(2))
    for start in islice(_UNIT_START.finditer(text), LONGEST_SEARCH):
        head, tail = text[: start.start()].strip(), text[start.start() :].strip()
        first = value_of(head)
        if first is None:
            continue
        # Letters after letters are a product, `v_0 t`; a unit follows them only as text.
        if (
            isinstance(first, Expression)
            and tail[:1].isalpha()
            and re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", head))
        ):
            continue
        # A noun must be set apart, "5xyz" is no five of something; a unit may follow a digit directly.
        apart = (
            tail[:1] in '"°¢µΩ(' or text[: start.end()][-1:].isspace() or text[: start.start()][-1:].isspace()
        )
        scaled, rest = _scaled(first, tail)
        if scaled is None:
            continue
        if not rest:
            return scaled
        counted = apart and has_words(rest) and is_noun_phrase(rest)
        if counted or ((apart or has_words(tail)) and unit(rest) is not None):
            return Quantity(scaled, rest)
    return value


def _compound(text: str) -> Quantity | None:
    """`2 hours 15 minutes`, `5 ft 3 in`: a sum of quantities of one dimension, in the first one's unit."""
    flat = " ".join(re.sub(r'"|\band\b|,', " ", text).split())
    pieces = _COMPOUND_PIECE.findall(flat)
    if len(pieces) < 2 or " ".join(f"{count} {name}" for count, name in pieces) != flat:
        return None
    units = [unit(name) for _, name in pieces]
    first = units[0]
    if first is None or any(each is None or each.dimension != first.dimension for each in units):
        return None
    sizes = [each.size for each in units if each is not None]
    if sizes != sorted(set(sizes), reverse=True):
        return None
    total = sum(Fraction(count) * size for (count, _), size in zip(pieces, sizes, strict=True))
    return Quantity(Number(total / first.size), pieces[0][1])


def _scaled(value: Number | Expression, tail: str) -> tuple[Number | Expression | None, str]:
    """The value times a scale word ("5 million dollars"), and the rest of the words."""
    words = tail.replace('"', " ").split()
    first = words[0].casefold() if words else ""
    if first not in SCALES and first not in PARTS:
        return value, tail
    if not isinstance(value, Number):
        return None, tail
    factor = Fraction(SCALES[first]) if first in SCALES else Fraction(1, PARTS[first])
    return Number(value.value * factor), " ".join(words[1:]).removeprefix("of ")
