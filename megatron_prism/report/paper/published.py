"""What the paper published, and where it contradicts itself: two YAML files, read with every key and number checked.

A number is kept as the text that the paper prints, so that 10.10 does not become 10.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError, suggest

FOLDER = Path(__file__).parent
# P: the paper. W: its project page.
SOURCES = ("P", "W")
EMPTY = "–"


@dataclass(frozen=True)
class PublishedRow:
    """One row as printed; `role` says what was done to the model, `values` maps columns to their text."""

    model: str
    role: str
    label: str
    values: dict[str, str]

    def number(self, column: str) -> float | None:
        """The value of a column; None if it is empty."""
        return None if self.values[column] == EMPTY else as_number(self.values[column])


@dataclass(frozen=True)
class PublishedTable:
    """One table of the paper (or the bars of a figure)."""

    key: str
    number: str
    section: str
    source: str
    title: str
    columns: list[str]
    rows: list[PublishedRow]

    def of_model(self, model: str) -> list[PublishedRow]:
        return [row for row in self.rows if row.model == model]

    def row(self, model: str, role: str) -> PublishedRow | None:
        return next((row for row in self.rows if (row.model, row.role) == (model, role)), None)


@dataclass(frozen=True)
class PublishedFigure:
    """What a figure shows, and the values that the text gives for it."""

    key: str
    number: str
    section: str
    title: str
    published: str


@dataclass(frozen=True)
class Contradiction:
    """Two or more things that the paper says about one fact.

    Attributes:
        values: (where, what) of each.
        finding: what follows from the paper's own numbers.
        cells: each with "table" and any of "model", "role" and "column"; what is left out matches all.
    """

    key: str
    title: str
    values: list[tuple[str, str]]
    finding: str
    cells: list[dict[str, str]]

    def concerns(self, **place: str) -> bool:
        """Whether a cell (table, and where known model, role and column) is one of `cells`."""
        return any(all(place.get(key) == value for key, value in cell.items()) for cell in self.cells)


@dataclass(frozen=True)
class Published:
    """All of it.

    Attributes:
        models: name of the recipe -> name in the paper.
        hubs: name of the recipe -> Hugging Face name.
        columns: key -> heading.
    """

    models: dict[str, str]
    hubs: dict[str, str]
    columns: dict[str, str]
    tables: dict[str, PublishedTable]
    figures: dict[str, PublishedFigure]
    contradictions: list[Contradiction]

    def marks(self, **place: str) -> list[int]:
        """The numbers, from 1 on, of the contradictions that concern a cell."""
        return [number for number, each in enumerate(self.contradictions, start=1) if each.concerns(**place)]


def as_number(text: str) -> float:
    """A number as printed, such as '2,254'."""
    return float(text.replace(",", ""))


@cache
def published() -> Published:
    """The packaged files."""
    return read_published(FOLDER / "published.yaml", FOLDER / "contradictions.yaml")


def read_published(values: Path, contradictions: Path) -> Published:
    """Both files.

    Raises:
        DataError: names the file and the entry that has an unknown or missing key, a value that is not a number, or a
            cell that does not exist.
    """
    return parse(_load(values, dict), _load(contradictions, list), str(values), str(contradictions))


def parse(data: Mapping[str, Any], listed: Sequence[Any], values: str, contradictions: str) -> Published:
    """The contents of the two files, whose names are for messages; see `read_published`."""
    _keys(data, ("models", "columns", "tables", "figures"), values)
    models, columns = data["models"], data["columns"]
    for name, model in models.items():
        _keys(model, ("name", "hub"), f"{values}: models.{name}")
    found = Published(
        models={name: model["name"] for name, model in models.items()},
        hubs={name: model["hub"] for name, model in models.items()},
        columns=columns,
        tables={
            key: _table(key, table, f"{values}: tables.{key}", models=models, columns=columns)
            for key, table in data["tables"].items()
        },
        figures={key: _figure(key, each, f"{values}: {key}") for key, each in data["figures"].items()},
        contradictions=[],
    )
    for number, each in enumerate(listed, start=1):
        found.contradictions.append(_contradiction(each, found, f"{contradictions}: entry {number}"))
    return found


def _load(path: Path, kind: type) -> Any:
    import yaml

    # The base loader makes text of every scalar, and nothing else; the one in C is ten times as fast.
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise DataError(f"{path}: not readable YAML ({str(problem).splitlines()[0]})") from None
    if not isinstance(data, kind):
        raise DataError(f"{path}: must be a {kind.__name__}")
    return data


def _keys(data: Mapping[str, Any], keys: Sequence[str], place: str) -> None:
    for key in data:
        if key not in keys:
            raise DataError(f"{place}: unknown key '{key}'{suggest(key, keys)}")
    for key in keys:
        if key not in data:
            raise DataError(f"{place}: '{key}' is missing")


def _table(
    key: str, data: Any, place: str, *, models: Mapping[str, Any], columns: Mapping[str, str]
) -> PublishedTable:
    _keys(data, ("number", "section", "source", "title", "columns", "rows"), place)
    if data["source"] not in SOURCES:
        raise DataError(f"{place}: source={data['source']}: must be one of {', '.join(SOURCES)}")
    for column in data["columns"]:
        if column not in columns:
            raise DataError(f"{place}: column '{column}' has no heading{suggest(column, columns)}")
    rows = []
    for number, row in enumerate(data["rows"], start=1):
        where = f"{place}, row {number}"
        _keys(row, ("model", "role", "label", "values"), where)
        if row["model"] not in models:
            raise DataError(f"{where}: unknown model '{row['model']}'{suggest(row['model'], models)}")
        if len(row["values"]) != len(data["columns"]):
            raise DataError(f"{where}: {len(row['values'])} values for {len(data['columns'])} columns")
        for value in row["values"]:
            _check_number(value, where)
        cells = dict(zip(data["columns"], row["values"], strict=True))
        rows.append(PublishedRow(row["model"], row["role"], row["label"], cells))
    if len({(row.model, row.role) for row in rows}) < len(rows):
        raise DataError(f"{place}: two rows have one model and role")
    return PublishedTable(
        key, data["number"], data["section"], data["source"], data["title"], data["columns"], rows
    )


def _check_number(value: Any, place: str) -> None:
    if value == EMPTY:
        return
    try:
        as_number(value)
    except (AttributeError, ValueError):
        raise DataError(f"{place}: {value!r} is not a number; write {EMPTY} for an empty cell") from None


def _figure(key: str, data: Any, place: str) -> PublishedFigure:
    _keys(data, ("number", "section", "title", "published"), place)
    return PublishedFigure(key, data["number"], data["section"], data["title"], data["published"])


def _contradiction(data: Any, known: Published, place: str) -> Contradiction:
    _keys(data, ("id", "title", "values", "finding", "cells"), place)
    values = []
    for value in data["values"]:
        _keys(value, ("where", "value"), place)
        values.append((value["where"], value["value"]))
    if len(values) < 2:
        raise DataError(f"{place}: a contradiction has two values or more")
    for cell in data["cells"] or []:
        _check_cell(cell, known, place)
    return Contradiction(data["id"], data["title"], values, data["finding"], list(data["cells"] or []))


def _check_cell(cell: Mapping[str, str], known: Published, place: str) -> None:
    for key in cell:
        if key not in ("table", "model", "role", "column"):
            raise DataError(f"{place}: unknown key '{key}' of a cell")
    if cell.get("table") in known.figures and len(cell) == 1:
        return
    table = known.tables.get(cell.get("table", ""))
    if table is None:
        raise DataError(f"{place}: there is no table '{cell.get('table')}'")
    if "column" in cell and cell["column"] not in table.columns:
        raise DataError(f"{place}: {table.number} has no column '{cell['column']}'")
    rows = [row for row in table.rows if cell.get("model", row.model) == row.model]
    if not any(cell.get("role", row.role) == row.role for row in rows):
        raise DataError(f"{place}: {table.number} has no row {cell.get('model', '')} {cell.get('role', '')}")
