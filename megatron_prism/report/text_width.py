"""How wide a cell of a table is on the report's page, without a browser.

Widths count in characters of the page's widest usual font (DejaVu Sans) at the size of its tables. tests/report
measures whole pages with that font's metrics.
"""

from __future__ import annotations

import re

# So many digits fit into a row of the page, on a screen (62rem less its margins) and on A4 paper (178 mm).
PAGE_CHARACTERS = 100.0
# Width of the space on both sides of a cell, and of a character of a cell's smaller lines after the first.
PADDING = 1.9
SMALL = 0.83
# A label may be broken after one of these.
BREAK_AFTER = re.compile(r"(?<=[_\-/])(?=\w)")


def page_width(cell: str) -> float:
    """The least width of a cell: its longest part that is not broken, with its padding."""
    first, *more = cell.split("\n")
    pieces = [piece for word in first.split() for piece in BREAK_AFTER.split(word)]
    return PADDING + max([0.0, *map(float, map(len, pieces)), *(SMALL * len(line) for line in more)])


def terminal_width(cell: str) -> float:
    """The width of a cell of a terminal's table, with its padding and a line between columns."""
    return 3.0 + max(map(len, cell.split("\n")))
