"""A value with a unit or a noun: `5 cm`, "3 red balls", `¤5`, "5 million", "2 hours 15 minutes"."""

from __future__ import annotations

import re
from fractions import Fraction

from megatron_prism.verification.answers.algebra import readable
from megatron_prism.verification.answers.braces import balanced
from megatron_prism.verification.answers.kinds import Expression, Quantity
from megatron_prism.verification.answers.number_words import PARTS, SCALES
from megatron_prism.verification.answers.numbers import Number, number
from megatron_prism.verification.answers.units import unit
from megatron_prism.verification.answers.words import has_words, is_noun_phrase

_CURRENCY = re.compile(r'"?\s*(USD|EUR|GBP|INR|CAD|AUD|JPY|Rs)\.?\s*"?\s*([\d.,]+)')
_ARC = re.compile(
    r"(\d+)\s*°\s*(\d+(?:\.\d+)?)\s*(?:'|\^\{?\\prime\}?)(?:\s*(\d+(?:\.\d+)?)\s*(?:''|\^\{?\\prime\\prime\}?))?"
)
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
    if not text or _NOT_ONE_VALUE.search(text) or has_words(text):
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
    if text.startswith(("¤", "-¤")):
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
    for start in _UNIT_START.finditer(text):
        head, tail = text[: start.start()].strip(), text[start.start() :].strip()
        first = value_of(head)
        if first is None:
            continue
        quoted = (
            tail[:1] in '"°¢µΩ(' or has_words(tail) or re.search(r"\d\s+$", text[: start.end()]) is not None
        )
        scaled, rest = _scaled(first, tail)
        if scaled is None:
            continue
        if not rest:
            return scaled
        if quoted and (unit(rest) is not None or (has_words(rest) and is_noun_phrase(rest))):
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
