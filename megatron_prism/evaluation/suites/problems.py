"""Rows of a benchmark into problems: columns, options, the prompt, and whether its own answer could earn.

What the user has to mend is an error that names the file, the row and the key: a missing column, a cell that is not
text, an id that occurs twice, no rows. What only spoils single problems is counted and named, because a problem that
cannot be graded must not count as wrong: an answer that cannot be read, tests that are missing.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from megatron_prism.data.shoebox.corpus import ShoeboxCorpus
from megatron_prism.errors import DataError, suggest
from megatron_prism.evaluation.suites.definition import PROBLEMS, ROWS, SAME_FOR_ALL, BenchmarkDefinition
from megatron_prism.evaluation.suites.filters import keeps
from megatron_prism.evaluation.suites.prompt_template import fill
from megatron_prism.evaluation.suites.readers import ROW_READERS, Prepared
from megatron_prism.evaluation.suites.sources import Source
from megatron_prism.pipeline.json_text import is_blank
from megatron_prism.platform.console import get_logger
from megatron_prism.verification.problems import (
    NAMED,
    Problem,
    problem_of,
    read_suite,
    subset,
    unreachable,
)
from megatron_prism.verification.sandbox.code_tests import parse_tests

ID, ANSWER, TESTS, OPTIONS = "id", "answer", "tests", "options"

log = get_logger(__name__)


@dataclass
class Found:
    """What was found while the problems of a benchmark were read; complete after the last problem.

    Attributes:
        rows: in the files.
        chosen: rows that satisfy `where`.
        dropped: id -> why the problem cannot be graded.
        notes: what the reader counted.
    """

    rows: int = 0
    chosen: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)


def read_problems(definition: BenchmarkDefinition, source: Source | None, found: Found) -> Iterator[Problem]:
    """The problems of a benchmark that can be graded, in the order of its files.

    Args:
        source: its files; None for generated problems.
        found: filled with what is counted.

    Raises:
        DataError: for the faults that the module's docstring names.
    """
    if source is None:
        problems = _generated(definition, found)
    elif definition.reader == PROBLEMS:
        problems = _ready(source, found)
    else:
        problems = _of_rows(definition, source, found)
    return problems if definition.limit is None else iter(subset(problems, definition.limit))


def check_count(definition: BenchmarkDefinition, found: Found) -> str:
    """A warning if the benchmark has not the number of problems that its definition names; otherwise empty."""
    if definition.problems is None or definition.problems == found.chosen:
        return ""
    return (
        f"benchmark '{definition.name}' has {found.chosen} problems, but its definition names "
        f"{definition.problems}: this is not the published set, and its scores are not comparable with published ones"
    )


def _generated(definition: BenchmarkDefinition, found: Found) -> Iterator[Problem]:
    for made in ShoeboxCorpus().held_out(definition.generated.partition("/")[2]):
        found.rows += 1
        found.chosen += 1
        yield problem_of(made.record(), f"generated problem {made.id}")


def _ready(source: Source, found: Found) -> Iterator[Problem]:
    (path,) = source.files.values()
    problems, found.dropped = read_suite(path.parent, path.stem)
    found.rows = found.chosen = len(problems) + len(found.dropped)
    return iter(problems)


def _of_rows(definition: BenchmarkDefinition, source: Source, found: Found) -> Iterator[Problem]:
    places: dict[str, str] = {}
    kept = 0
    for row, where in source.rows():
        found.rows += 1
        reading = _Row(definition, row, where)
        if not reading.chosen():
            continue
        found.chosen += 1
        name = reading.id(found.rows)
        if name in places:
            raise DataError(
                f"{where}: id '{name}' is already used at {places[name]}; make ids unique, or name another column "
                "with columns: {id: COLUMN}"
            )
        places[name] = where
        problem, fault = reading.problem(name, found)
        if problem is None:
            found.dropped[name] = fault
            if len(found.dropped) <= NAMED:
                log.warning("%s: problem '%s' is dropped: %s", where, name, fault)
            continue
        kept += 1
        yield problem
    files = ", ".join(source.files)
    if not found.rows:
        raise DataError(f"{files}: no rows; benchmark '{definition.name}' needs at least one")
    if not found.chosen:
        raise DataError(
            f"{files}: none of {found.rows} rows satisfies where: {definition.where} of benchmark '{definition.name}'"
        )
    if not kept:
        first = next(iter(found.dropped.items()))
        raise DataError(f"{files}: no problem can be graded; the first, '{first[0]}': {first[1]}")
    if found.dropped:
        log.warning("%s: %d of %d problems cannot be graded", files, len(found.dropped), found.chosen)


class _Row:
    """One row while it becomes a problem."""

    def __init__(self, definition: BenchmarkDefinition, row: Mapping[str, Any], where: str) -> None:
        self.definition, self.row, self.where = definition, row, where
        self.added: dict[str, Any] = {}

    def chosen(self) -> bool:
        """Whether the row satisfies all conditions of the definition."""
        return all(
            keeps(condition, self.cell(column), f"{self.where}: '{self._column(column)}'")
            for column, condition in self.definition.where.items()
        )

    def id(self, number: int) -> str:
        """The id in the row, or its number if the table has no ids."""
        if ID not in self.definition.columns and ID not in self.row:
            return str(number)
        name = self.text(ID)
        if is_blank(name):
            raise DataError(f"{self.where}: '{self._column(ID)}' is blank; every problem needs an id")
        return name

    def problem(self, name: str, found: Found) -> tuple[Problem | None, str]:
        """The problem of this row, or None and why it cannot be graded."""
        definition = self.definition
        prepared: Prepared = ROW_READERS[definition.reader](self.row, definition.columns)
        if prepared.fault:
            return None, prepared.fault
        self.added = dict(prepared.columns)
        answer = ""
        if definition.choices:
            answer, fault = self._shuffle(name)
            if fault:
                return None, fault
        elif definition.kind != "code":
            cell = self.cell(ANSWER)
            answer = "" if cell is None else self.text(ANSWER)
            if is_blank(answer):
                return None, "it has no answer"
        elif definition.reader == ROWS:
            self.cell(TESTS)
        if definition.kind == "code":
            try:
                parse_tests(prepared.tests, "its tests")
            except DataError as malformed:
                return None, str(malformed)
        record = {
            "id": name,
            "domain": definition.domain,
            "prompt": fill(self._template(), self.text),
            "kind": definition.kind,
            "answer": answer,
            "tests": prepared.tests,
        }
        problem = problem_of(record | {"benchmark": definition.rules}, self.where)
        if (hopeless := unreachable(problem)) is not None:
            return None, hopeless
        found.notes.update(prepared.notes)
        return problem, ""

    def cell(self, name: str) -> Any:
        """The cell of a column, by our name of it or by that of the file."""
        if name in self.added:
            return self.added[name]
        column = self._column(name)
        if column not in self.row:
            mapped = f" (columns: {name})" if column != name else ""
            raise DataError(
                f"{self.where}: no column '{column}'{mapped}, which benchmark '{self.definition.name}' names at "
                f"{self.definition.where_written}{suggest(column, map(str, [*self.row, *self.added]))}"
            )
        return self.row[column]

    def text(self, name: str) -> str:
        """The cell as text: numbers are written out, anything else but text is an error."""
        cell = self.cell(name)
        if isinstance(cell, str):
            return cell
        if isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell):
            return str(cell)
        kind = "nothing" if cell is None else type(cell).__name__
        raise DataError(
            f"{self.where}: '{self._column(name)}' must be text or a number, found {kind}; correct the row or remove it"
        )

    def _column(self, name: str) -> str:
        return self.definition.columns.get(name, name)

    def _template(self) -> str:
        prompts, by = self.definition.prompts, self.definition.prompt_by
        value = self.text(by) if by else ""
        if value not in prompts:
            raise DataError(
                f"{self.where}: '{self._column(by)}' is '{value}', for which benchmark '{self.definition.name}' has no "
                f"prompt{suggest(value, prompts)}"
            )
        return prompts[value]

    def _shuffle(self, name: str) -> tuple[str, str]:
        """Sets the column `options`; returns the letter of the right one, or "" and why there is none."""
        choices = self.definition.choices
        assert choices is not None
        texts = [self.text(choices.right), *map(self.text, choices.wrong)]
        if texts[0] in texts[1:]:
            return "", "its right option stands among the wrong ones too"
        seed = choices.seed if choices.order == SAME_FOR_ALL else f"{choices.seed}|{name}"
        order = list(range(len(texts)))
        random.Random(seed).shuffle(order)
        self.added[OPTIONS] = ", ".join(
            f"{letter}) {texts[at]}" for letter, at in zip(ascii_uppercase, order, strict=False)
        )
        return ascii_uppercase[order.index(0)], ""
