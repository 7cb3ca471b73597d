"""Reads the rows of a benchmark's file: JSON lines, a JSON list, CSV or Parquet, also compressed with gzip or zstd.

The rules for text and JSON are those of pipeline/json_text.py. Each row comes with its place for error messages:
FILE:LINE for JSON lines, `FILE: row N` for the others, where the first row is row 1.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError
from megatron_prism.pipeline.json_text import BYTE_ORDER_MARK, FETCH_LFS, LFS_POINTER, chunks, read_records

COMPRESSED = (".gz", ".zst")
JSON_LINES, JSON, CSV, PARQUET = ".jsonl", ".json", ".csv", ".parquet"
SUFFIXES = (JSON_LINES, JSON, CSV, PARQUET)
ROWS_PER_BATCH = 64
# A cell of a CSV file may hold a whole statement of a problem or its tests.
LARGEST_CELL = 1 << 30

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[Row, str]]:
    """The rows of a file, one at a time, each with its place.

    Raises:
        DataError: for a file that is missing, of another format, damaged, or not text in UTF-8.
    """
    suffix = suffix_of(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if suffix == PARQUET:
            yield from _parquet(path)
        elif suffix == CSV:
            yield from _csv(path)
        elif suffix == JSON and _first_sign(path) == b"[":
            yield from _json_list(path)
        else:
            yield from read_records(path)
    except OSError as problem:
        raise DataError(f"{path}: not readable ({problem.strerror or problem})") from None


def suffix_of(path: Path) -> str:
    """The format of a file by its name.

    Raises:
        DataError: for a name with another ending.
    """
    name = path.name.lower()
    packed = next((ending for ending in COMPRESSED if name.endswith(ending)), "")
    plain = name.removesuffix(packed)
    found = next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), None)
    if found is None or (packed and found == PARQUET):
        raise DataError(
            f"{path}: unknown ending; rows are read from {', '.join(SUFFIXES)}, the first three also with "
            f"{' or '.join(COMPRESSED)}"
        )
    return found


def _first_sign(path: Path) -> bytes:
    for chunk in chunks(path):
        if sign := chunk.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]:
            return sign
    return b""


def _text(path: Path) -> str:
    data = b"".join(chunks(path))
    if data.startswith(LFS_POINTER):
        raise DataError(f"{path}: {FETCH_LFS}")
    data = data.removeprefix(BYTE_ORDER_MARK)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text ({problem.reason}); convert the file to UTF-8"
        ) from None


def _json_list(path: Path) -> Iterator[tuple[Row, str]]:
    try:
        rows = json.loads(_text(path))
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path}: not JSON ({problem})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number}: a JSON object is needed, found {type(row).__name__}")
        yield row, f"{path}: row {number}"


def _csv(path: Path) -> Iterator[tuple[Row, str]]:
    csv.field_size_limit(LARGEST_CELL)
    # newline="" keeps the line ends inside quoted cells.
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    number = 0
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise DataError(f"{path}: column '{twice}' occurs twice in the first line; rename one")
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                raise DataError(
                    f"{path}: row {number}: {len(cells)} cells, but the first line names {len(header)} columns; "
                    "put a cell that contains a comma into quotes"
                )
            yield dict(zip(header, cells, strict=True)), f"{path}: row {number}"
    except csv.Error as problem:
        raise DataError(f"{path}: row {number + 1}: not CSV ({problem})") from None


def _parquet(path: Path) -> Iterator[tuple[Row, str]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}: row {number}"
    except (pyarrow.ArrowException, UnicodeDecodeError) as problem:
        reason = str(problem).splitlines()[0]
        raise DataError(f"{path}: damaged Parquet data ({reason}); fetch or write the file again") from None
