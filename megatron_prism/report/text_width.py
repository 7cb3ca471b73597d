"""How wide a cell of a table is on the report's page, without a browser.

Widths count in characters of the page's widest usual font (DejaVu Sans) at the size of its tables. tests/report
measures whole pages with that font's metrics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

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


def column_blocks(label: float, columns: Sequence[float], most: float) -> list[slice]:
    """Which columns stand in one table, each after the column of labels: as few tables as fit, of equal size.

    Args:
        label: the width of the labels, in the unit of the others.
        most: the width of the page; a table of one column may be wider.
    """
    for count in range(1, len(columns) + 1):
        edges = [round(number * len(columns) / count) for number in range(count + 1)]
        blocks = [slice(first, last) for first, last in pairwise(edges)]
        if all(label + sum(columns[block]) <= most for block in blocks):
            break
    return blocks
