"""A table of strings, for a terminal or a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of strings; columns with `numeric` are right-aligned."""

    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    title: str = ""
