"""Which rows of a data set belong to a benchmark: the conditions under `where`, all of which must hold.

`column: VALUE` or `column: [VALUE, ...]`: the cell is one of these. `column: {empty: true}`: there is no text in it
(`false`: there is). `column: {from: A, before: B}`: A <= cell < B, as numbers if the bound is a number, else as text,
so that dates are written 2024-08-01.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_prism.errors import ConfigError, DataError, suggest

EMPTY, FROM, BEFORE = "empty", "from", "before"
CONDITIONS = (EMPTY, FROM, BEFORE)


def check_condition(condition: Any, where: str) -> Any:
    """A condition of a suite file, with its values as text.

    Raises:
        ConfigError: naming `where`, for a form that is not described above.
    """
    if isinstance(condition, Mapping):
        for key in condition:
            if key not in CONDITIONS:
                raise ConfigError(f"{where}: unknown condition '{key}'{suggest(str(key), CONDITIONS)}")
        if not condition:
            raise ConfigError(f"{where}: no condition; give a value, or {', '.join(CONDITIONS)}")
        if not isinstance(condition.get(EMPTY, True), bool):
            raise ConfigError(f"{where}: 'empty' must be true or false, found {condition[EMPTY]!r}")
        return {
            key: value if key == EMPTY or _is_number(value) else _scalar(value, where)
            for key, value in condition.items()
        }
    if isinstance(condition, list):
        return [_scalar(value, where) for value in condition]
    return [_scalar(condition, where)]


def keeps(condition: Any, cell: Any, where: str) -> bool:
    """Whether a cell satisfies a checked condition.

    Raises:
        DataError: naming `where`, if a cell that is compared with a number is none.
    """
    if isinstance(condition, list):
        return _text(cell) in condition
    if EMPTY in condition and (not _text(cell).strip()) != condition[EMPTY]:
        return False
    if FROM in condition and _below(cell, condition[FROM], where):
        return False
    return BEFORE not in condition or _below(cell, condition[BEFORE], where)


def _below(cell: Any, bound: Any, where: str) -> bool:
    if isinstance(bound, str):
        return _text(cell) < bound
    try:
        return float(cell) < bound
    except (TypeError, ValueError):
        raise DataError(
            f"{where} is {cell!r}, which cannot be compared with the number {bound}; correct the row, or write the "
            "bound in quotes to compare texts"
        ) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    return cell.isoformat() if hasattr(cell, "isoformat") else str(cell)


def _scalar(value: Any, where: str) -> str:
    if isinstance(value, list | Mapping) or value is None:
        raise ConfigError(f"{where}: a value must be text or a number, found {type(value).__name__}")
    return _text(value)
