"""The comparisons of a test statement, which an object of the program's own class cannot decide against a plain value.

A program may return an object whose `__eq__` or `__lt__` is always true. `compare` reduces subclasses of plain types
(a named tuple, an `IntEnum`) to those types first, and a comparison of a plain value with an object that cannot be
reduced is false. Two objects of the program, or an element and a container of the program, are compared by Python.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE, Include/object.h: a type made by a class statement.
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, lambda value: int.__add__(value, 0)),
    (float, lambda value: float.__add__(value, 0.0)),
    (complex, lambda value: complex.__add__(value, 0j)),
    (str, str.__str__),
    (bytes, lambda value: bytes.__add__(value, b"")),
    (bytearray, lambda value: bytearray.__add__(value, b"")),
)
_OPERATORS = {
    **{"Eq": operator.eq, "Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt, "GtE": operator.ge},
    **{"In": lambda item, container: item in container},
}
_CONTAINERS = (list, tuple, set, frozenset, dict)
# What the library defines in Python and what compares as a number.
_TRUSTED = {("fractions", "Fraction"), ("decimal", "Decimal")}


class _Foreign(Exception):
    """A value contains an object that cannot be reduced to plain types."""


def comparison(modules: dict[str, Any]) -> Callable[..., bool]:
    """The function `compare(names of operators, first value, second value, ...)`.

    Args:
        modules: the modules that were loaded before the program ran; their numbers are trusted.
    """
    trusted = {
        getattr(modules[module], name) for module, name in _TRUSTED if hasattr(modules.get(module), name)
    }
    operators, reduce, foreign, containers = dict(_OPERATORS), _reduced, _Foreign, _CONTAINERS

    def reduced(value: Any) -> tuple[Any, bool]:
        try:
            return reduce(value, trusted), True
        except foreign:
            return value, False

    def holds(name: str, left: Any, right: Any) -> bool:
        if name == "NotIn":
            return not holds("In", left, right)
        if name == "NotEq":
            return not holds("Eq", left, right)
        (ours, plain), (theirs, other_plain) = reduced(left), reduced(right)
        if name == "In" and type(theirs) in containers:
            return any(item is left or holds("Eq", left, item) for item in theirs)
        if plain != other_plain and not (name == "In" and plain):
            return False
        return bool(operators[name](ours, theirs))

    def compare(names: tuple[str, ...], *values: Any) -> bool:
        return all(holds(name, *values[number : number + 2]) for number, name in enumerate(names))

    return compare


def _reduced(value: Any, trusted: set[Any]) -> Any:
    kind = type(value)
    if not kind.__flags__ & HEAP_TYPE or kind in trusted:
        if kind is list or kind is tuple or kind is set or kind is frozenset:
            return kind([_reduced(item, trusted) for item in value])
        if kind is dict:
            return {_reduced(key, trusted): _reduced(item, trusted) for key, item in value.items()}
        return value
    for base, plain in _BASES:
        if issubclass(kind, base):
            return plain(value)
    if issubclass(kind, tuple):
        return tuple([_reduced(item, trusted) for item in tuple.__iter__(value)])
    if issubclass(kind, list):
        return [_reduced(item, trusted) for item in list.__iter__(value)]
    if issubclass(kind, dict):
        return {_reduced(key, trusted): _reduced(item, trusted) for key, item in dict.items(value)}
    if issubclass(kind, set | frozenset):
        items = set.__iter__(value) if issubclass(kind, set) else frozenset.__iter__(value)
        return {_reduced(item, trusted) for item in items}
    raise _Foreign
