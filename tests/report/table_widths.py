"""The least widths of a page's tables, from the font metrics of DejaVu Sans and the page's own style sheet.

DejaVu Sans is the widest of the fonts that the style sheet names, so a table that fits with it fits with all.
"""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser

ROOT = 16.0


class Tables(HTMLParser):
    """Every table's class, and for each column the widest run of text that is not broken, in ems of the table."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, list[float]]] = []
        self.open: list[tuple[str, str]] = []
        self.column = -1
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        kind = dict(attrs).get("class") or ""
        if tag == "table":
            self.found.append((kind, []))
        if tag == "tr":
            self.column = -1
        if tag in ("th", "td"):
            self.column += 1
            columns = self.found[-1][1]
            columns += [0.0] * (self.column + 1 - len(columns))
        if tag in ("th", "td") or (tag == "span" and self.open):
            self.open.append((tag, kind))

    def handle_endtag(self, tag):
        if tag in ("th", "td") or (tag == "span" and self.open):
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not self.open or not data.strip():
            return
        names = [kind for _, kind in self.open]
        cell, numeric = self.open[0][0], "number" in names[0]
        small = "more" in names
        # In a form of the paper, the second line of a row's label may be broken.
        in_form = "form" in self.found[-1][0].split() and cell == "th" and not numeric
        unbroken = (small and not in_form) or (numeric and cell == "td")
        pieces = [data.strip()] if unbroken else data.split()
        size = 0.83 if small else 1.0
        width = max(size * ems(piece, bold=cell == "th" and not small) for piece in pieces)
        columns = self.found[-1][1]
        columns[self.column] = max(columns[self.column], width)


@cache
def ems(text: str, bold: bool) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=100)
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 100


def rule(page: str, selector: str, key: str, last: bool = False) -> str:
    """The value of a key in the first (or last: for print) rule of exactly this selector."""
    bodies = re.findall(re.escape(selector) + r"\s*\{([^}]*)\}", page)
    body = bodies[-1 if last else 0]
    return re.search(rf"{key}:\s*([^;}}]+)", body)[1].strip()


def wide_table_widths(page: str, paper: bool = False) -> list[float]:
    """The least width in CSS pixels of each table of class wide, on a screen or on paper."""
    if paper:
        size = float(rule(page, "table.wide", "font-size", last=True).removesuffix("pt")) * 96 / 72
    else:
        size = float(re.search(r"(\d+)px", rule(page, "table", "font"))[1])
    padding = rule(page, "table.wide th, table.wide td", "padding", last=paper).split()[1]
    both = 2 * ROOT * float(padding.removesuffix("rem"))
    return [
        sum(size * ems_ + both for ems_ in columns)
        for kind, columns in Tables(page).found
        if "wide" in kind.split()
    ]


def room(page: str, paper: bool = False) -> float:
    """The width of the page's text in CSS pixels."""
    if paper:
        margin = re.search(r"@page \{ margin: \d+mm (\d+)mm", page)[1]
        return (210 - 2 * float(margin)) / 25.4 * 96
    most = float(rule(page, "main", "max-width").removesuffix("rem"))
    return ROOT * (most - 2 * float(rule(page, "main", "padding").split()[1].removesuffix("rem")))
