"""Parts of comparing one value or one text: units, periods, remainders, and texts that mean the same."""

from __future__ import annotations

import re
from fractions import Fraction

from megatron_prism.verification.answers.kinds import Expression, Quantity, Reading, Relation, Residue, Text
from megatron_prism.verification.answers.numbers import Number
from megatron_prism.verification.answers.reading import read
from megatron_prism.verification.answers.units import unit
from megatron_prism.verification.answers.words import plain_words

# Beside a number these may scale it: 5 M can be five million.
_SCALES = frozenset(("M", "B", "k", "ppm", "ppb", "permille", "‰"))
_SINGLE_LETTERS = re.compile(r"(?:[A-Za-z](?:\^\{?-?\d\}?)?\s*)+|mg|ms")
LONGEST_BITS = 13_000
NO_SOLUTION = {
    "no solution",
    "no solutions",
    "no real solution",
    "no real solutions",
    "there is no solution",
    "none",
    "no answer",
}
_SYNONYMS = (
    NO_SOLUTION,
    {"does not exist", "dne", "undefined", "not defined"},
    {"infinitely many", "infinitely many solutions", "infinite", "infinity"},
)


def turn(gold: str, answer: str) -> str | None:
    """How an angle becomes one in the reference's unit, if one is in degrees and the other in radians."""
    left, right = unit(gold), unit(answer)
    if left is None or right is None or left.size != 1 or right.size != 1:
        return None
    names = (left.dimension, right.dimension)
    degree, radian = ((("degree", Fraction(1)),), (("radian", Fraction(1)),))
    if names == (degree, radian):
        return "({}) \\cdot \\frac{{180}}{{\\pi}}"
    return "({}) \\cdot \\frac{{\\pi}}{{180}}" if names == (radian, degree) else None


def conversion(gold: str, answer: str) -> Fraction | None:
    """What an answer's value is multiplied with to be in the reference's unit; None if the units cannot be compared.

    A unit that only one side states is taken as meant by the other.
    """
    if not gold:
        return None if answer.strip(' "') in _SCALES else Fraction(1)
    if not answer:
        # `2 m g` may be algebra: a bare 2 is not enough for letters that no \\text{} marks as a unit.
        return None if _SINGLE_LETTERS.fullmatch(gold) else Fraction(1)
    left, right = unit(gold), unit(answer)
    if left is not None and right is not None:
        if left.dimension != right.dimension:
            return None
        return right.size / left.size
    if left is not None or right is not None:
        return None
    first, second = (plain_words(each).removesuffix("s") for each in (gold, answer))
    alike = first == second or first.endswith(f" {second}") or second.endswith(f" {first}")
    return Fraction(1) if alike else None


def same_text(gold: Text, answer: Reading, answer_text: str) -> bool:
    """Whether the answer is the reference's words or formula; `answer_text` is the answer as normalized text."""
    if gold.formula is not None:
        return isinstance(answer, Text) and answer.formula == gold.formula
    words = plain_words(answer_text) if not isinstance(answer, Text) else answer.words
    if _joined(words) == _joined(gold.words):
        return bool(words)
    return any(gold.words in group and words in group for group in _SYNONYMS)


def _joined(words: str) -> str:
    """Without spaces, except between digits, where they separate two numbers."""
    return re.sub(r"(?<!\d) | (?!\d)", "", words)


def remainder(residue: Residue) -> Fraction | None:
    """The value of `10 \\bmod 7`."""
    value, modulus = read(residue.value), read(residue.modulus)
    if not isinstance(value, Number) or not isinstance(modulus, Number) or not modulus.value:
        return None
    return value.value % modulus.value


def written_out(value: Fraction) -> str:
    """A whole number in decimal digits; empty for others and for those that Python refuses to write out."""
    return str(value) if value.denominator == 1 and value.numerator.bit_length() <= LONGEST_BITS else ""


def periodic(value: Fraction) -> bool:
    """Whether the decimal fraction of `value` never ends."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest != 1


def latex(value: Number | Expression) -> str:
    """A value as LaTeX, with a percent sign as hundredths."""
    if isinstance(value, Expression):
        return value.latex
    if max(abs(value.value.numerator), value.value.denominator).bit_length() > LONGEST_BITS:
        # Python refuses to write it out; no algebra equals it that is not itself read as a number.
        return ""
    sign = "-" if value.value < 0 else ""
    text = f"{sign}\\frac{{{abs(value.value.numerator)}}}{{{value.value.denominator}}}"
    return text if not value.percent else f"{text} \\cdot \\frac{{1}}{{100}}"


def source(value: Number | Expression | Quantity | Relation) -> str:
    """A text that reads as `value` again."""
    if isinstance(value, Relation):
        signs = (*value.signs, "")
        return " ".join(f"{side} {sign}" for side, sign in zip(value.sides, signs, strict=True)).strip()
    if isinstance(value, Quantity):
        return f'{latex(value.value)} "{value.unit}"'
    if isinstance(value, Number):
        return latex(Number(value.value)) + ("%" if value.percent else "")
    return value.latex


def named_values(parts: tuple[str, ...]) -> list[str] | None:
    """The values of `x = 1, y = 2`, in the order of the names; None unless every part names another variable."""
    found: dict[str, str] = {}
    for part in parts:
        relation = read(part)
        if not isinstance(relation, Relation) or relation.signs != ("=",):
            return None
        if not re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?", relation.sides[0]):
            return None
        found[relation.sides[0]] = relation.sides[1]
    return [found[name] for name in sorted(found)] if len(found) == len(parts) > 1 else None
