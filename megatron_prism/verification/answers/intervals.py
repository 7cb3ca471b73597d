"""Sets of real numbers: intervals, unions and inequalities in one form, compared by their exact ends."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cmp_to_key
from typing import Any

from megatron_prism.verification.answers import algebra
from megatron_prism.verification.answers.kinds import Items, Reading, Relation, Union
from megatron_prism.verification.answers.reading import read

_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}
_VARIABLE = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?|\\[a-z]+|[a-z]\([a-z]\)")


@dataclass(frozen=True)
class _Interval:
    """Ends as sympy numbers or infinities, and whether they belong to it."""

    low: Any
    high: Any
    low_closed: bool
    high_closed: bool


Region = tuple[_Interval, ...]


def same_region(gold: Reading, answer: Reading) -> bool:
    """Whether both are sets of real numbers, and the same set, in whichever notation; of the same variable if named."""
    left, right = _region(gold), _region(answer)
    if left is None or right is None:
        return False
    return len(_names(gold) | _names(answer)) <= 1 and left == right


def _region(reading: Reading) -> Region | None:
    if isinstance(reading, Items):
        return _from_items(reading)
    if isinstance(reading, Relation):
        return _from_inequality(reading)
    if isinstance(reading, Union):
        return _from_union(reading)
    return None


def _from_items(items: Items) -> Region | None:
    if items.brackets == "{}":
        points = [_real(part) for part in items.parts]
        return None if None in points else _merged([_Interval(each, each, True, True) for each in points])
    if len(items.parts) != 2 or items.brackets not in ("()", "[]", "(]", "[)"):
        return None
    low, high = (_real(part) for part in items.parts)
    if low is None or high is None or low > high:
        return None
    return _merged([_Interval(low, high, items.brackets[0] == "[", items.brackets[1] == "]")])


def _from_union(union: Union) -> Region | None:
    regions = [_region(read(part)) for part in union.parts]
    if any(region is None for region in regions):
        return None
    found = [region for region in regions if region is not None]
    if union.joint == "or":
        merged = _merged([interval for region in found for interval in region])
    else:
        merged = found[0]
        for region in found[1:]:
            merged = _met(merged, region)
    for text in union.removed:
        point = _real(text)
        if point is None:
            return None
        merged = _without(merged, point)
    return merged


def _from_inequality(relation: Relation) -> Region | None:
    """`x < 3`, `0 \\le x < 1`, `x \\ne 2`; the variable must stand alone on one side."""
    import sympy

    sides, signs = relation.sides, relation.signs
    place = [index for index, side in enumerate(sides) if _is_variable(side)]
    if len(sides) > 3 or any(sign not in _FLIPPED for sign in signs):
        return None
    if len(place) != 1:
        return _solved(sides, signs)
    everything: Region = (_Interval(-sympy.oo, sympy.oo, False, False),)
    region = everything
    for index, sign in enumerate(signs):
        left, right = index, index + 1
        if place[0] not in (left, right):
            return None
        bound = _real(sides[left] if place[0] == right else sides[right])
        if bound is None:
            return None
        region = _met(region, _bounded(_FLIPPED[sign] if place[0] == right else sign, bound))
    return region


def _solved(sides: tuple[str, ...], signs: tuple[str, ...]) -> Region | None:
    """The solutions of inequalities in one variable such as `|x - 2| < 3`, found by sympy."""
    import sympy

    terms = [algebra.expression(side) for side in sides]
    if any(term is None for term in terms) or any(sign == "\\ne" for sign in signs):
        return None
    names = set().union(*(term.free_symbols for term in terms if term is not None))
    if len(names) != 1:
        return None
    variable = sympy.Symbol("x", real=True)
    renamed = {next(iter(names)): variable}
    terms = [term.xreplace(renamed) for term in terms if term is not None]
    compare = {"<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge, "=": sympy.Eq}
    region: Region = (_Interval(-sympy.oo, sympy.oo, False, False),)
    for index, sign in enumerate(signs):
        found = _solution(compare[sign], terms[index], terms[index + 1])
        if found is None:
            return None
        region = _met(region, found)
    return region


def _solution(compare: Callable[[Any, Any], Any], left: Any, right: Any) -> Region | None:
    import sympy

    def solved() -> Any | None:
        relation = compare(left, right)
        return None if relation in (sympy.true, sympy.false) else relation.as_set()

    found = algebra.attempted(solved, otherwise=None)
    if found is None or found.free_symbols:
        return None
    parts = found.args if isinstance(found, sympy.Union) else (found,)
    if not all(isinstance(part, sympy.Interval) for part in parts):
        return None
    return _merged(
        [
            _Interval(_end(part.start), _end(part.end), not part.left_open, not part.right_open)
            for part in parts
        ]
    )


def _end(value: Any) -> Any:
    return value if value.is_infinite else value.evalf(60)


def _real(text: str) -> Any | None:
    """The value of a constant expression if it is real or infinite."""
    value = algebra.value_of(text)
    return value if value is not None and value.is_extended_real else None


def _is_variable(side: str) -> bool:
    """Also an empty side: "≥ 3" is about whichever variable is meant."""
    return not side or (_VARIABLE.fullmatch(side) is not None and algebra.value_of(side) is None)


def _bounded(sign: str, bound: Any) -> Region:
    import sympy

    if sign == "=":
        return (_Interval(bound, bound, True, True),)
    if sign == "\\ne":
        return (_Interval(-sympy.oo, bound, False, False), _Interval(bound, sympy.oo, False, False))
    if sign in ("<", "\\le"):
        return (_Interval(-sympy.oo, bound, False, sign == "\\le"),)
    return (_Interval(bound, sympy.oo, sign == "\\ge", False),)


def _names(reading: Reading) -> set[str]:
    """The variables of inequalities."""
    if isinstance(reading, Union):
        return set().union(*(_names(read(part)) for part in reading.parts))
    if isinstance(reading, Relation):
        return {side for side in reading.sides if side and _is_variable(side)}
    return set()


def _merged(intervals: list[_Interval]) -> Region:
    """Sorted, with overlapping and touching intervals joined."""
    result: list[_Interval] = []
    for each in sorted(intervals, key=cmp_to_key(_before)):
        if each.low == each.high and not (each.low_closed and each.high_closed):
            continue
        last = result[-1] if result else None
        if last is not None and (
            each.low < last.high or (each.low == last.high and (each.low_closed or last.high_closed))
        ):
            high, closed = last.high, last.high_closed
            if each.high > high or (each.high == high and each.high_closed):
                high, closed = each.high, each.high_closed
            result[-1] = replace(last, high=high, high_closed=closed)
        else:
            result.append(each)
    return tuple(result)


def _before(first: _Interval, second: _Interval) -> int:
    if first.low != second.low:
        return -1 if first.low < second.low else 1
    return int(second.low_closed) - int(first.low_closed)


def _met(first: Region, second: Region) -> Region:
    found: list[_Interval] = []
    for left in first:
        for right in second:
            low, low_closed = (
                (left.low, left.low_closed) if left.low > right.low else (right.low, right.low_closed)
            )
            if left.low == right.low:
                low_closed = left.low_closed and right.low_closed
            high, high_closed = (
                (left.high, left.high_closed) if left.high < right.high else (right.high, right.high_closed)
            )
            if left.high == right.high:
                high_closed = left.high_closed and right.high_closed
            if low < high or (low == high and low_closed and high_closed):
                found.append(_Interval(low, high, low_closed, high_closed))
    return _merged(found)


def _without(region: Region, point: Any) -> Region:
    import sympy

    return _met(region, (_Interval(-sympy.oo, point, False, False), _Interval(point, sympy.oo, False, False)))
