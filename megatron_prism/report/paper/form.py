"""The parts of the page: sections, each in the form of one table or figure of the paper, and what stands in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from megatron_prism.platform.text_table import Table
from megatron_prism.report.paper.published import Published, PublishedRow, PublishedTable
from megatron_prism.report.text_width import PAGE_CHARACTERS, column_blocks, page_width

# Room for a model's name, whose second line may be broken.
LABEL = 16.0

Kind = Literal["ours", "paper", "difference"]
DASH = "–"
# A value with its interval, as the tables of analyses have it.
INTERVAL = re.compile(r"^(\S+) \((\S+) to (\S+)\)$")


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a smaller second line, and the numbers of the contradictions that concern it."""

    text: str
    more: str = ""
    marks: Sequence[int] = ()
    kind: Kind = "ours"


@dataclass(frozen=True)
class Line:
    """One row of a form; `kind` decides how its label looks."""

    kind: Kind
    label: Cell
    cells: list[Cell]


@dataclass(frozen=True)
class Form:
    """A table with ours and the paper's rows or columns, told apart by their looks."""

    caption: str
    columns: list[Cell]
    lines: list[Line]

    def parts(self) -> list[Form]:
        """The form, or several that fit a page, each with some of the columns."""
        widths = [
            max(_width(cell) for cell in (heading, *(line.cells[index] for line in self.lines)))
            for index, heading in enumerate(self.columns[1:])
        ]
        labels = [page_width(line.label.text) for line in self.lines]
        first = max(page_width(self.columns[0].text), *labels, LABEL)
        return [
            Form(
                self.caption if block.start == 0 else "continued: more columns.",
                [self.columns[0], *self.columns[1:][block]],
                [replace(line, cells=line.cells[block]) for line in self.lines],
            )
            for block in column_blocks(first, widths, PAGE_CHARACTERS)
        ]


@dataclass(frozen=True)
class Plot:
    """Inline SVG, its caption, and its share of the page's width in percent."""

    svg: str
    caption: str
    percent: int = 100


def _width(cell: Cell) -> float:
    marks = sum(len(str(mark)) + 1 for mark in cell.marks)
    return page_width(f"{cell.text}\n{cell.more}") + 0.7 * marks


@dataclass
class Section:
    """One table or figure of the paper.

    Attributes:
        number: such as "Table 6"; empty for what the paper does not have.
        forms: with this run's numbers.
        tables: of analyses, as their commands show them: the first of each analysis.
        more_tables: the others, which are folded away.
        reference: the paper's own rows; closed if this run's model is none of theirs.
        missing: what would make this section, if the run has nothing for it.
        notes: sentences on what the numbers are.
        marks: the contradictions that concern the whole.
    """

    key: str
    number: str
    section: str
    title: str
    forms: list[Form] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)
    more_tables: list[tuple[str, Table]] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    reference: list[Form] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    published: str = ""
    marks: list[int] = field(default_factory=list)

    @property
    def filled(self) -> bool:
        return bool(self.forms or self.tables or self.plots)


def section_of(table: PublishedTable) -> Section:
    return Section(table.key, table.number, table.section, table.title)


def published_lines(paper: Published, table: PublishedTable, rows: Sequence[PublishedRow]) -> list[Line]:
    """The paper's rows, as printed, with the marks of contradictions."""
    return [
        Line(
            "paper",
            Cell(paper.models[row.model], row.label, kind="paper"),
            [published_cell(paper, table, row, column) for column in table.columns],
        )
        for row in rows
    ]


def published_cell(paper: Published, table: PublishedTable, row: PublishedRow, column: str) -> Cell:
    marks = paper.marks(table=table.key, model=row.model, role=row.role, column=column)
    return Cell(row.values[column], marks=marks, kind="paper")


def reference_form(paper: Published, table: PublishedTable, rows: Sequence[PublishedRow]) -> Form:
    """A table of the paper's rows alone."""
    columns = [Cell("model"), *(Cell(paper.columns[column]) for column in table.columns)]
    return Form(f"{table.number} as published.", columns, published_lines(paper, table, rows))


def narrow(table: Table) -> Table:
    """The table with intervals below their values, so that more columns fit a page."""
    rows = [[INTERVAL.sub(r"\1\n\2–\3", cell) for cell in row] for row in table.rows]
    return replace(table, rows=rows)


def difference(ours: float, theirs: float, digits: int) -> str:
    """Ours less theirs with its sign."""
    text = f"{abs(ours - theirs):.{digits}f}"
    if not float(text):
        return text
    return f"{'+' if ours > theirs else '−'}{text}"
