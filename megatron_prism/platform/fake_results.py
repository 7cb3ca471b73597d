"""Remembers what an operation on meta tensors returns, because many of them find it out in a millisecond of Python.

The layers of a model repeat the same operations on the same shapes, and a scan over 128k tokens does so some hundred
thousand times. An operation whose result follows from the shapes, strides and dtypes of its inputs is executed once;
after that the result is made from what was found. An error is never remembered, so the first time shows all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

META = torch.device("meta")
# The argument that is returned, or (shape, strides, dtype) of a new tensor.
Found = int | tuple[Any, Any, torch.dtype]


# Kinds of operations beside the position of the argument that one changes and returns.
NEW, VIEW, OTHER = -1, -2, -3
_VIEWS = frozenset(
    {"view", "select", "slice", "transpose", "permute", "expand", "unsqueeze", "t", "detach", "alias"}
)
_kinds: dict[Any, int] = {}


def kind_of(func: Any) -> int:
    """The position of the argument that the operation changes and returns; NEW: it makes one tensor; VIEW; OTHER."""
    kind = _kinds.get(func)
    if kind is None:
        kind = _kinds[func] = _kind(func)
    return kind


def _kind(func: Any) -> int:
    schema = func._schema
    if func.namespace != "aten" or len(schema.returns) != 1 or str(schema.returns[0].type) != "Tensor":
        return OTHER
    if schema.name.removeprefix("aten::") in _VIEWS:
        return VIEW
    alias = schema.returns[0].alias_info
    if alias is None:
        # A view of an argument does not always say so.
        return OTHER if any(each.alias_info is not None for each in schema.arguments) else NEW
    if alias.is_write:
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.before_set == alias.before_set:
                return index
    return OTHER


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.is_meta
    if isinstance(value, list | tuple):
        return tuple([_described(each) for each in value])
    # 1, 1.0 and True are equal, and give results of other dtypes.
    return type(value), value


class Results:
    """The results that have been found."""

    def __init__(self) -> None:
        self._found: dict[Any, Found] = {}
        self._key: Any = None

    def known(self, kind: int, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation that has run before; None for another one, which `find` then executes."""
        if kind == OTHER:
            return None
        self._key = (
            func,
            _described(args),
            tuple([(k, _described(v)) for k, v in kwargs.items()]) if kwargs else (),
        )
        found = self._found.get(self._key)
        if found is None:
            return None
        if isinstance(found, int):
            return _argument(found, func, args, kwargs)
        return torch.empty_strided(found[0], found[1], dtype=found[2], device=META)

    def find(self, kind: int, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute the operation, and remember what it returned."""
        if kind == OTHER:
            return func(*args, **kwargs)
        key = self._key
        given = _argument(kind, func, args, kwargs) if kind >= 0 else None
        before = None if given is None else _described(given)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not result.is_meta:
            return result
        if kind == NEW:
            self._found[key] = result.shape, result.stride(), result.dtype
        elif result is given and _described(result) == before:
            # Not an `out` that was resized.
            self._found[key] = kind
        return result


def _argument(position: int, func: Any, args: Any, kwargs: Any) -> Any:
    return args[position] if position < len(args) else kwargs.get(func._schema.arguments[position].name)
