"""Whether an answer equals the reference answer. The kind of the reference decides what is compared, and how.

`same_answer` takes the two as a model and a data set write them. It never raises for what they contain; it may be slow
for an expression that asks for a long computation, so text that a model wrote is graded in a pool that can kill it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from megatron_prism.verification.answers import algebra
from megatron_prism.verification.answers.choice import choice_letter
from megatron_prism.verification.answers.dates import Clock, Date, same_clock, same_date
from megatron_prism.verification.answers.intervals import same_region
from megatron_prism.verification.answers.kinds import (
    Based,
    Expression,
    Items,
    Matrix,
    Quantity,
    Ratio,
    Reading,
    Relation,
    Residue,
    Text,
    Union,
)
from megatron_prism.verification.answers.notation import normalize
from megatron_prism.verification.answers.numbers import Number
from megatron_prism.verification.answers.reading import is_assigned, names_value, read
from megatron_prism.verification.answers.values import (
    NO_SOLUTION,
    conversion,
    latex,
    named_values,
    periodic,
    remainder,
    same_text,
    source,
    turn,
    written_out,
)

# Longer than any reference answer. Longer text is equal only if it is written alike.
LONGEST_ANSWER = 1_000
# A decimal fraction counts as an irrational or periodic number if it has at least this many correct digits.
ENOUGH_DIGITS = 10
# Lists longer than this are compared in order only: matching all orders of algebra would be slow.
LONGEST_UNORDERED = 24

_CONSTANT = re.compile(r"\+\s*[cCkK]\s*$")
_LETTER = re.compile(r'["(\s]*([A-Z])["\s]*(?:[).:]["\s]*)?')


def same_answer(answer: str, gold: str, tolerance: float = 0.0) -> bool:
    """Whether `answer` means the same as the reference `gold`.

    Args:
        tolerance: relative difference that two numbers may have. 0: numbers are exact, except that a decimal fraction
            with ten correct digits equals an irrational or periodic number.
    """
    if max(len(answer), len(gold)) > LONGEST_ANSWER:
        return " ".join(answer.split()) == " ".join(gold.split())
    left, right = normalize(gold), normalize(answer)
    if _compact(left) == _compact(right):
        return bool(right)
    letter = _LETTER.fullmatch(left)
    if letter is not None:
        return choice_letter(answer) == letter.group(1)
    return _Comparison(tolerance).same(left, right)


def _terms(text: str) -> tuple[str, ...] | None:
    """The two numbers of `9:16`, `9/16` or `\\frac{9}{16}` as written."""
    match = re.fullmatch(r"\s*(\d+)\s*[:/]\s*(\d+)\s*|\s*\\frac\{(\d+)\}\{(\d+)\}\s*", text)
    return None if match is None else tuple(part for part in match.groups() if part is not None)


def _compact(text: str) -> str:
    """Without the spaces that cannot separate two candidates, and without quotes and needless braces."""
    text = re.sub(r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2", text)
    text = re.sub(r"(?<![\w.,])\s+|\s+(?![\w.,])", "", text.replace('"', " ").strip())
    return text.rstrip(".")


class _Comparison:
    def __init__(self, tolerance: float) -> None:
        self.tolerance = Fraction(tolerance) if tolerance else Fraction(0)

    def same(self, gold: str, answer: str) -> bool:
        """Compare two normalized texts."""
        if _compact(gold) == _compact(answer):
            return True
        return self.compare(read(gold), read(answer), gold, answer)

    def compare(self, gold: Reading, answer: Reading, gold_text: str, answer_text: str) -> bool:
        if isinstance(gold, Text):
            return same_text(gold, answer, answer_text)
        if isinstance(answer, Text):
            return isinstance(gold, Items) and not gold.parts and answer.words in NO_SOLUTION
        structured = isinstance(gold, Date | Clock | Based | Residue | Ratio | Matrix | Items | Union)
        if (
            structured
            and isinstance(answer, Relation)
            and set(answer.signs) == {"="}
            and is_assigned(answer.sides[0])
        ):
            return self._stated_value(gold_text, answer)
        if isinstance(gold, Date):
            return isinstance(answer, Date) and same_date(gold, answer)
        if isinstance(gold, Clock):
            if isinstance(answer, Clock):
                return same_clock(gold, answer)
            return _terms(gold_text) == _terms(answer_text) is not None
        if isinstance(answer, Clock):
            return _terms(gold_text) == _terms(answer_text) is not None
        if isinstance(gold, Based):
            return self._based(gold, answer)
        if isinstance(gold, Residue):
            return self._residue(gold, answer, answer_text)
        if isinstance(gold, Ratio):
            return self._ratio(gold, answer)
        if isinstance(gold, Matrix):
            return self._matrix(gold, answer)
        if isinstance(gold, Items):
            return self._items(gold, answer)
        if isinstance(gold, Union):
            return same_region(gold, answer)
        if isinstance(gold, Relation):
            return self._relation(gold, answer, answer_text)
        return self._value(gold, answer, gold_text)

    def _value(self, gold: Number | Expression | Quantity, answer: Reading, gold_text: str) -> bool:
        """One value: a number, algebra, or either with a unit."""
        if isinstance(answer, Number | Expression | Quantity):
            return self._same_values(gold, answer)
        if isinstance(answer, Relation):
            return self._stated_value(gold_text, answer)
        if isinstance(answer, Items):
            # A set of one element, or one value written in several ways ("1/2 or 0.5").
            one = len(answer.parts) == 1 if answer.brackets else len(answer.parts) > 1
            return (
                answer.brackets in ("", "{}")
                and one
                and all(self.same(gold_text, each) for each in answer.parts)
            )
        if isinstance(answer, Based):
            # The reference is digits without a base: the same digits count.
            return isinstance(gold, Number) and written_out(gold.value) == answer.digits
        if isinstance(answer, Residue):
            left = remainder(answer)
            return (
                self.same(gold_text, answer.value)
                if left is None
                else isinstance(gold, Number) and gold.value == left
            )
        if isinstance(answer, Ratio) and isinstance(gold, Number) and gold.value.denominator != 1:
            return len(answer.terms) == 2 and self.same(
                gold_text, f"\\frac{{{answer.terms[0]}}}{{{answer.terms[1]}}}"
            )
        return False

    def _same_values(
        self, gold: Number | Expression | Quantity, answer: Number | Expression | Quantity
    ) -> bool:
        gold_unit = gold.unit if isinstance(gold, Quantity) else ""
        answer_unit = answer.unit if isinstance(answer, Quantity) else ""
        left = gold.value if isinstance(gold, Quantity) else gold
        right = answer.value if isinstance(answer, Quantity) else answer
        turned = turn(gold_unit, answer_unit)
        if turned is not None:
            return algebra.same_expression(latex(left), turned.format(latex(right)))
        factor = conversion(gold_unit, answer_unit)
        if factor is None:
            return False
        if factor != 1:
            if not isinstance(left, Number) or not isinstance(right, Number):
                return False
            right = Number(right.value * factor, right.percent)
        if isinstance(left, Number) and isinstance(right, Number):
            return self._same_numbers(left, right)
        return self._same_algebra(left, right)

    def _same_numbers(self, gold: Number, answer: Number) -> bool:
        if gold.percent == answer.percent:
            return self._close(gold, answer)
        percent, plain = (gold, answer) if gold.percent else (answer, gold)
        hundredth = Number(percent.value / 100, digits=percent.digits, places=percent.places + 2)
        if percent is gold:
            return self._close(percent, plain) or self._close(hundredth, plain)
        # 50% may be meant by 50, but 0.5% is not 0.5.
        return (percent.value >= 1 and self._close(plain, percent)) or self._close(plain, hundredth)

    def _close(self, gold: Number, answer: Number) -> bool:
        difference = abs(gold.value - answer.value)
        if difference <= self.tolerance * abs(gold.value):
            return True
        for exact, decimal in ((gold, answer), (answer, gold)):
            # 0.0833333333333 for 1/12: a periodic number has no shorter exact decimal.
            if decimal.digits is not None and decimal.digits >= ENOUGH_DIGITS and periodic(exact.value):
                return difference <= Fraction(1, 10**decimal.places)
        return False

    def _same_algebra(self, left: Number | Expression, right: Number | Expression) -> bool:
        gold, answer = latex(left), latex(right)
        if self.tolerance:
            value, other = algebra.value_of(gold), algebra.value_of(answer)
            if value is not None and other is not None and value.is_real and other.is_real:
                return bool(abs(value - other) <= abs(value) * float(self.tolerance))
        # The name of a constant of integration is free.
        if _CONSTANT.search(gold) and _CONSTANT.search(answer):
            gold, answer = (_CONSTANT.sub("+C", text) for text in (gold, answer))
        if algebra.same_expression(gold, answer):
            return True
        for exact, decimal in ((gold, right), (answer, left)):
            if isinstance(decimal, Number) and (decimal.digits or 0) >= ENOUGH_DIGITS:
                return algebra.rounds_to(exact, decimal)
        return False

    def _stated_value(self, gold: str, answer: Relation) -> bool:
        """`x = 5` or `1 + 4 = 5` for 5: every value in it must equal the reference, so a chain earns nothing."""
        if any(sign not in ("=", "\\approx", "\\equiv") for sign in answer.signs):
            return False
        values = list(answer.sides)
        if answer.signs[-1] == "\\approx" and len(values) > 1 and self._rounded(gold, values):
            return True
        while len(values) > 1 and names_value(values[0]) and _compact(values[0]) != _compact(gold):
            if isinstance(read(gold), Expression) and self.same(gold, values[0]):
                break
            values.pop(0)
        while len(values) > 1 and re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?", values[-1]) and values[-1] != gold:
            values.pop()
        return all(self.same(gold, value) for value in values)

    def _rounded(self, gold: str, sides: list[str]) -> bool:
        """`x = 2\\sqrt{3} \\approx 3.46`: an exact value and its decimal fraction, rounded or cut off."""
        exact, decimal = sides[-2], read(sides[-1])
        found = read(exact)
        endless = isinstance(found, Expression) or (isinstance(found, Number) and periodic(found.value))
        if not isinstance(decimal, Number) or not endless or is_assigned(exact):
            return False
        if not algebra.rounds_to(exact, decimal):
            return False
        named = all(is_assigned(side) for side in sides[:-2])
        return named and (self.same(gold, exact) or self.same(gold, sides[-1]))

    def _relation(self, gold: Relation, answer: Reading, answer_text: str) -> bool:
        if any(sign not in ("=", "\\approx", "\\equiv") for sign in gold.signs):
            if isinstance(answer, Relation) and gold.signs == answer.signs == ("\\ne",):
                return all(
                    self.same(left, right) for left, right in zip(gold.sides, answer.sides, strict=True)
                )
            return same_region(gold, answer)
        named = is_assigned(gold.sides[0])
        if not isinstance(answer, Relation):
            return named and self.same(gold.sides[-1], answer_text)
        if any(sign not in ("=", "\\approx", "\\equiv") for sign in answer.signs):
            return False
        if len(gold.sides) != 2 or len(answer.sides) != 2:
            return (
                named
                and _compact(gold.sides[0]) == _compact(answer.sides[0])
                and all(self.same(gold.sides[-1], side) for side in answer.sides[1:])
            )
        (left, right), (answer_left, answer_right) = gold.sides, answer.sides
        if self.same(left, answer_left) and self.same(right, answer_right):
            return True
        if self.same(left, answer_right) and self.same(right, answer_left):
            return True
        renamed = _same_argument(left, answer_left, answer_right)
        if renamed is not None and self.same(right, renamed):
            return True
        # y = 2x + 1 and f(x) = 2x + 1 define the same function; x = 5 and y = 5 are different statements.
        itself = re.search(rf"(?<![A-Za-z]){re.escape(answer_left)}(?![A-Za-z])", answer_right)
        function = (
            named
            and is_assigned(answer_left)
            and not itself
            and re.search("[a-z]", re.sub(r"\\[A-Za-z]+", "", right))
        )
        if function and self.same(right, answer_right):
            return True
        return algebra.same_equation((left, right), (answer_left, answer_right))

    def _items(self, gold: Items, answer: Reading) -> bool:
        if isinstance(answer, Matrix):
            cells = [cell for row in answer.rows for cell in row]
            flat = len(answer.rows) == 1 or all(len(row) == 1 for row in answer.rows)
            return flat and gold.brackets in ("()", "<>", "[]") and self._ordered(gold.parts, cells)
        if isinstance(answer, Union) or (isinstance(answer, Relation) and len(gold.parts) != 1):
            return same_region(gold, answer)
        if isinstance(answer, Number | Expression | Quantity | Relation):
            return (
                gold.brackets in ("", "{}")
                and len(gold.parts) == 1
                and self.same(gold.parts[0], source(answer))
            )
        if not isinstance(answer, Items):
            return False
        if gold.brackets in ("()", "[]", "[)", "(]", "<>"):
            return self._ordered_items(gold, answer)
        if answer.brackets in ("()", "[]", "<>"):
            return self._ordered(gold.parts, answer.parts)
        wanted, given = named_values(gold.parts), named_values(answer.parts)
        # a = 1, b = 2 says which is which, so an answer or a reference without names must follow that order.
        if (wanted is None) != (given is None):
            return self._ordered(wanted or gold.parts, given or answer.parts)
        return self._unordered(gold, answer)

    def _ordered_items(self, gold: Items, answer: Items) -> bool:
        if answer.brackets == "{}":
            return False
        if answer.brackets == "":
            parts = named_values(answer.parts) or answer.parts
            return gold.brackets in ("()", "[]", "<>") and self._ordered(gold.parts, parts)
        loose = {"<>", "()"}
        # [1, 2, 3] is a vector, while [1, 2] may be an interval.
        loose = loose | {"[]"} if len(gold.parts) > 2 else loose
        alike = gold.brackets == answer.brackets or {gold.brackets, answer.brackets} <= loose
        return alike and self._ordered(gold.parts, answer.parts)

    def _ordered(self, gold: Sequence[str], answer: Sequence[str]) -> bool:
        return len(gold) == len(answer) and all(
            self.same(left, right) for left, right in zip(gold, answer, strict=True)
        )

    def _unordered(self, gold: Items, answer: Items) -> bool:
        wanted, given = list(gold.parts), list(answer.parts)
        if gold.brackets == answer.brackets == "{}":
            return all(any(self.same(left, right) for right in given) for left in wanted) and all(
                any(self.same(left, right) for left in wanted) for right in given
            )
        if len(wanted) != len(given):
            return False
        if len(wanted) > LONGEST_UNORDERED:
            return self._ordered(wanted, given)
        nested = any(isinstance(read(part), Items) for part in wanted)
        for part in given:
            if not nested and isinstance(read(part), Items):
                # {1}, {2} are two sets and not the two numbers.
                return False
            match = next((index for index, each in enumerate(wanted) if self.same(each, part)), None)
            if match is None:
                return False
            del wanted[match]
        return True

    def _matrix(self, gold: Matrix, answer: Reading) -> bool:
        if isinstance(answer, Matrix):
            return len(gold.rows) == len(answer.rows) and all(
                self._ordered(left, list(right)) for left, right in zip(gold.rows, answer.rows, strict=True)
            )
        cells = [cell for row in gold.rows for cell in row]
        flat = len(gold.rows) == 1 or all(len(row) == 1 for row in gold.rows)
        return (
            flat
            and isinstance(answer, Items)
            and answer.brackets in ("()", "<>", "[]")
            and self._ordered(cells, list(answer.parts))
        )

    def _ratio(self, gold: Ratio, answer: Reading) -> bool:
        if isinstance(answer, Ratio):
            if any(isinstance(term := read(each), Number) and not term.value for each in answer.terms):
                return False
            return len(gold.terms) == len(answer.terms) and all(
                self.same(f"({gold.terms[0]})*({right})", f"({answer.terms[0]})*({left})")
                for left, right in zip(gold.terms[1:], answer.terms[1:], strict=True)
            )
        if len(gold.terms) == 2 and isinstance(answer, Number | Expression):
            return self.same(f"\\frac{{{gold.terms[0]}}}{{{gold.terms[1]}}}", source(answer))
        return False

    def _based(self, gold: Based, answer: Reading) -> bool:
        if isinstance(answer, Based):
            return gold == answer
        if not isinstance(answer, Number):
            return False
        # Digits alone are in the base that the question asks for.
        return written_out(answer.value) == gold.digits

    def _residue(self, gold: Residue, answer: Reading, answer_text: str) -> bool:
        if not isinstance(answer, Residue):
            return self.same(gold.value, answer_text)
        if not self.same(gold.modulus, answer.modulus):
            return False
        left, right, modulus = read(gold.value), read(answer.value), read(gold.modulus)
        if (
            isinstance(left, Number)
            and isinstance(right, Number)
            and isinstance(modulus, Number)
            and modulus.value
        ):
            return (left.value - right.value) % modulus.value == 0
        return self.same(gold.value, answer.value)


def _same_argument(gold: str, answer: str, body: str) -> str | None:
    """The body of `f(n) = n^2` with the argument that the reference `f(x) = ...` has; None for another function."""
    first, second = (re.fullmatch(r"([A-Za-z])\s*\(\s*([a-z])\s*\)", side) for side in (gold, answer))
    if first is None or second is None or first.group(1) != second.group(1):
        return None
    return re.sub(rf"(?<![A-Za-z\\]){second.group(2)}(?![A-Za-z])", first.group(2), body)
