"""The scores of every model on every suite, as tables that fit a page or a terminal however many models there are.

Models become the rows or the columns, whichever needs fewer tables; what is still too wide continues in a second table.
A score stands above its interval, so a column is as narrow as the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megatron_prism.evaluation.statistics.intervals import Estimate
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.platform.text_table import Table
from megatron_prism.report.tables import DASH, Difference, differences, score_rows, signed
from megatron_prism.report.text_width import PAGE_CHARACTERS, column_blocks, page_width

CHANGE = "change (points)"


@dataclass(frozen=True)
class _Grid:
    """Labels of rows and columns, and the cells of each row; a cell's second line, after a newline, is smaller."""

    corner: str
    rows: list[str]
    columns: list[str]
    cells: list[list[str]]

    def transposed(self, corner: str) -> _Grid:
        return _Grid(corner, self.columns, self.rows, [list(row) for row in zip(*self.cells, strict=True)])

    def tables(self, most: float, width_of: Callable[[str], float]) -> list[Table]:
        """Tables with some of the columns each, as equal in number as possible, none wider than `most`."""
        widths = [
            max(width_of(text) for text in (column, *(row[index] for row in self.cells)))
            for index, column in enumerate(self.columns)
        ]
        label = max(width_of(text) for text in (self.corner, *self.rows))
        parts = column_blocks(label, widths, most)
        return [
            Table(
                [self.corner, *self.columns[part]],
                [[label, *row[part]] for label, row in zip(self.rows, self.cells, strict=True)],
                [False, *[True] * len(self.columns[part])],
            )
            for part in parts
        ]


def score_tables(
    artifacts: Mapping[str, Artifact],
    most: float = PAGE_CHARACTERS,
    width_of: Callable[[str], float] = page_width,
) -> list[Table]:
    """Pass rates in percent above their intervals, and the change from the first evaluated model to the last.

    Args:
        most: the width of the page.
        width_of: the width of a cell with its padding, in the same unit.
    """
    grid = _grid(artifacts)
    if not grid.rows:
        return []
    suites_as_rows = grid.tables(most, width_of)
    models_as_rows = grid.transposed("model").tables(most, width_of)
    return min(suites_as_rows, models_as_rows, key=lambda made: (len(made), len(made[0].columns)))


def _grid(artifacts: Mapping[str, Artifact]) -> _Grid:
    """A row per suite, a column per model."""
    rows = score_rows(artifacts)
    models = list(dict.fromkeys(row.model for row in rows))
    changes = {change.suite: change for change in differences(rows, artifacts)}
    labels, cells = [], []
    for suite in dict.fromkeys(row.suite for row in rows):
        by_model = {row.model: row for row in rows if row.suite == suite}
        problems = "/".join(dict.fromkeys(f"{row.problems:,}" for row in by_model.values()))
        labels.append(f"{suite}\n{problems} problems")
        line = [_rate(by_model[model].estimate) if model in by_model else DASH for model in models]
        if changes:
            line.append(_change(changes[suite]) if suite in changes else DASH)
        cells.append(line)
    return _Grid("suite", labels, [*models, *([CHANGE] if changes else [])], cells)


def _rate(estimate: Estimate) -> str:
    return f"{100 * estimate.rate:.1f}\n{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"


def _change(change: Difference) -> str:
    return f"{signed(change.change)}\n{signed(change.low)} to {signed(change.high)}"
