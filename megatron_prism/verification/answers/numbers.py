"""Numbers and plain arithmetic in exact fractions: most answers are decided here, without sympy.

`number` reads what a person writes for one rational number: `1,000`, `-0.5`, `\\frac{2}{4}`, `2 1/3`, `3\\times 10^5`,
`1e3`, `2^{100}`, `5!`, `50%`. Everything else (roots, letters, functions) is None and goes to `algebra`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

# A power or factorial with a longer result is not computed: `9^{9^9}` must cost nothing.
LARGEST_BITS = 100_000
# Digits beyond this are compared as text by the caller: Python refuses to convert them.
LONGEST_DIGITS = 4_000

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d{1,4}(?![\d.]))?|\.\d+(?:[eE][+-]?\d{1,4}(?![\d.]))?)"
    r"|(?P<word>\\(?:frac|binom|times|cdot))(?![A-Za-z])|(?P<sign>[-+*/^!(){}\[\]]))"
)
# 1,000 and 1,000,000.5; with spaces 1 000; with apostrophes or underscores 1_000; with points 1.000.000.
_GROUPED = (
    re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3}(?!\d))+(?:\.\d+)?"),
    re.compile(r"(?<![\d.])[1-9]\d{0,2}(?: \d{3}(?![\d/]))+(?:\.\d+)?"),
    re.compile(r"\d{1,3}(?:[_']\d{3}(?!\d))+(?:\.\d+)?"),
    re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{3}(?!\d)){2,}"),
)
_MIXED = re.compile(r"([-+]?)\s*(\d+)\s*(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|\s(\d+)\s*/\s*(\d+))")
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)(?:\\overline\{(\d+)\}|\\bar\{(\d+)\}|\((\d+)\))")
_DOTS = re.compile(r"([-+]?)(\d*)\.(\d*?)(?:(\d)\4{2,}|(\d{2,}?)\5+)(?:\.{3}|\\ldots)")
_DECIMAL = re.compile(r"[-+]?\d*\.(\d+)")


@dataclass(frozen=True)
class Number:
    """A rational number.

    Attributes:
        value: exactly; of `50%`, fifty.
        percent: whether a percent sign follows.
        digits: significant digits if it was written as a decimal fraction, else None.
        places: digits after the point of that decimal fraction.
    """

    value: Fraction
    percent: bool = False
    digits: int | None = None
    places: int = 0


class _NotPlain(Exception):
    """The text is not plain arithmetic, or its value is too large to compute."""


def ungrouped(text: str) -> str:
    """Without thousands separators. A comma followed by a space separates a list."""
    for pattern in _GROUPED:
        text = pattern.sub(lambda match: _joined(match.group()), text)
    return text


def number(text: str) -> Number | None:
    """The number that normalized `text` is, or None."""
    text = text.strip()
    if not text or len(text) > LONGEST_DIGITS:
        return None
    body = re.sub(r'\s*(?:%|"\s*(?:percent|per cent)\s*"|\bpercent\b|\bper cent\b)\s*$', "", text)
    percent = body != text
    body = ungrouped(body)
    mixed = _MIXED.fullmatch(body)
    if mixed is not None:
        sign, whole, *parts = mixed.groups()
        top, bottom = (part for part in parts if part is not None)
        if int(bottom) == 0:
            return None
        value = int(whole) + Fraction(int(top), int(bottom))
        return Number(-value if sign == "-" else value, percent)
    repeating = _REPEATING.fullmatch(body.replace(" ", "")) or _DOTS.fullmatch(body.replace(" ", ""))
    if repeating is not None:
        return Number(_repeating(repeating), percent)
    decimal = _DECIMAL.fullmatch(body.replace(" ", "") if re.match(r"[-+] ", body) else body)
    digits = len(body.lstrip("-+ ").replace(".", "").lstrip("0")) if decimal else None
    try:
        return Number(_Arithmetic(body).value(), percent, digits, len(decimal.group(1)) if decimal else 0)
    except (_NotPlain, ZeroDivisionError, OverflowError, RecursionError, ValueError):
        return None


def _joined(grouped: str) -> str:
    head, point, tail = grouped.rpartition(".")
    if point and ("," in head or " " in head or "_" in head or "'" in head):
        return re.sub(r"[ ,_']", "", head) + "." + tail
    return re.sub(r"[ ,_'.]", "", grouped)


def _repeating(match: re.Match[str]) -> Fraction:
    sign, whole, fixed, *cycles = match.groups()
    cycle = next(filter(None, cycles))
    start = Fraction(int((whole or "0") + fixed), 10 ** len(fixed))
    value = start + Fraction(int(cycle), 10 ** len(fixed) * (10 ** len(cycle) - 1))
    return -value if sign == "-" else value


class _Arithmetic:
    """A recursive-descent reader of sums, products, powers, fractions and factorials of plain numbers."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _NotPlain
            token = match.group(match.lastgroup or 0)
            # Two numbers side by side are no product: "6 7" is two candidates.
            if match.lastgroup == "number" and self.tokens and self.tokens[-1][-1].isdigit():
                raise _NotPlain
            self.tokens.append(token)
            position = match.end()
        self.next = 0

    def value(self) -> Fraction:
        result = self.sum()
        if self.next != len(self.tokens):
            raise _NotPlain
        return result

    def peek(self) -> str:
        return self.tokens[self.next] if self.next < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise _NotPlain
        self.next += 1
        return token

    def sum(self) -> Fraction:
        result = self.product()
        while self.peek() in ("+", "-"):
            result = result + self.product() if self.take() == "+" else result - self.product()
        return _bounded(result)

    def product(self) -> Fraction:
        result = self.signed()
        while (token := self.peek()) in ("*", "/", "\\times", "\\cdot", "(", "\\frac"):
            if token == "/":
                self.take()
                result = result / self.signed()
            else:
                # A fraction after a number is a mixed number, which `number` reads; elsewhere it would be a guess.
                if token == "\\frac":
                    raise _NotPlain
                if token != "(":
                    self.take()
                result = result * self.signed()
            result = _bounded(result)
        return result

    def signed(self) -> Fraction:
        if self.peek() in ("-", "+"):
            return -self.signed() if self.take() == "-" else self.signed()
        return self.power()

    def power(self) -> Fraction:
        base = self.atom()
        if self.peek() == "!":
            self.take()
            base = _factorial(base)
            if self.peek() == "!":
                # A double factorial is no factorial of a factorial.
                raise _NotPlain
        if self.peek() != "^":
            return base
        self.take()
        exponent = self.group() if self.peek() == "{" else self.signed()
        if exponent.denominator != 1:
            raise _NotPlain
        size = max(abs(base.numerator), base.denominator).bit_length()
        if abs(exponent) * size > LARGEST_BITS:
            raise _NotPlain
        return base ** int(exponent)

    def atom(self) -> Fraction:
        token = self.take()
        if token == "(":
            result = self.sum()
            self.take(")")
            return result
        if token == "{":
            self.next -= 1
            return self.group()
        if token == "\\frac":
            return self.group() / self.group()
        if token == "\\binom":
            top, bottom = self.group(), self.group()
            if top.denominator != 1 or bottom.denominator != 1 or not 0 <= bottom <= top <= 10_000:
                raise _NotPlain
            return Fraction(math.comb(int(top), int(bottom)))
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token.rstrip(".") if token.endswith(".") else token)
        raise _NotPlain

    def group(self) -> Fraction:
        self.take("{")
        result = self.sum()
        self.take("}")
        return result


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator).bit_length() > LARGEST_BITS:
        raise _NotPlain
    return value


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= 5_000:
        raise _NotPlain
    return Fraction(math.factorial(int(value)))
