"""The kinds of things that an answer can be, beside `Number`, `Date` and `Clock`."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.verification.answers.dates import Clock, Date
from megatron_prism.verification.answers.numbers import Number


@dataclass(frozen=True)
class Text:
    """Words, a name, or anything unreadable; `formula` is set for a chemical formula, whose case matters."""

    words: str
    formula: str | None = None


@dataclass(frozen=True)
class Expression:
    """Algebra that is not one plain number, as normalized LaTeX."""

    latex: str


@dataclass(frozen=True)
class Quantity:
    """A value with a unit or a noun, both as normalized text."""

    value: Number | Expression
    unit: str


@dataclass(frozen=True)
class Relation:
    """Sides between relation signs: `x = 5` has two, a chain has more. `signs` are "=", "<", "\\\\le", ...."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Items:
    """Several parts. Brackets: "" of a plain list, "{}" of a set; "()", "[]", "[)", "(]" and "<>" of ordered parts."""

    parts: tuple[str, ...]
    brackets: str = ""


@dataclass(frozen=True)
class Matrix:
    """Rows of entries; `\\begin{pmatrix}` and its relatives."""

    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Ratio:
    """Terms between colons."""

    terms: tuple[str, ...]


@dataclass(frozen=True)
class Based:
    """Digits in a number system, `101_2`."""

    digits: str
    base: int


@dataclass(frozen=True)
class Residue:
    """A value modulo another, `7 \\pmod{10}`."""

    value: str
    modulus: str


@dataclass(frozen=True)
class Union:
    """Sets of real numbers joined by `\\cup` or "or" (`joint` "or"), or met by "and" (`joint` "and"); `removed` are
    points taken out."""

    parts: tuple[str, ...]
    joint: str = "or"
    removed: tuple[str, ...] = ()


Reading = (
    Text
    | Number
    | Expression
    | Quantity
    | Relation
    | Items
    | Matrix
    | Ratio
    | Based
    | Residue
    | Union
    | Date
    | Clock
)
