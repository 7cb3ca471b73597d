"""Reads documents from files: plain text, JSON lines (also gzip or zstd), Parquet, or a folder of these.

Files are streamed: at most a line, a row group or `MAX_TEXT` characters of a plain text file are in memory. An error is
a `DataError` with the name of the file and the line. The rules for text and JSON are those of `pipeline/json_text.py`.
A text without a visible character is not a document: it is skipped and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError
from megatron_prism.pipeline.json_text import is_blank, read_records
from megatron_prism.pipeline.placeholder import is_placeholder

TEXT_SUFFIXES = (".txt", ".md", ".py")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET_SUFFIXES = (".parquet",)
SUFFIXES = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, *PARQUET_SUFFIXES)
# A plain text file is one document. A longer file is split at line ends into documents of about this many characters.
MAX_TEXT = 1 << 20
ROWS_PER_BATCH = 1024
# A corpus artifact: SPLIT/SOURCE.jsonl.zst.
SPLITS = ("train", "valid")
CORPUS_SUFFIX = ".jsonl.zst"


@dataclass
class Blank:
    """Counts the texts that a reader skipped because they are blank."""

    documents: int = 0


def read_texts(path: Path, text_key: str = "text", blank: Blank | None = None) -> Iterator[str]:
    """The documents of a file, or of a folder's files in sorted order. Files with other suffixes are skipped.

    Args:
        path: a file with one of `SUFFIXES`, or a folder searched recursively.
        text_key: the key (JSON lines) or column (Parquet) that holds the text.
        blank: counts the blank texts.

    Raises:
        DataError: for a file that is missing, empty, damaged or in the wrong format.
    """
    path = Path(path)
    blank = Blank() if blank is None else blank
    count = 0
    for file in source_files(path):
        for text in _read_file(file, text_key):
            if is_blank(text):
                blank.documents += 1
            else:
                count += 1
                yield text
    if not count:
        found = f" ({blank.documents} blank)" if blank.documents else ""
        raise DataError(
            f"{path}: empty corpus, it has no document with text{found}; check the path and text_key='{text_key}'"
        )


def corpus_sources(folder: Path, split: str) -> dict[str, Path]:
    """The source files of a corpus folder's split: name -> path, sorted.

    Raises:
        DataError: if there are none.
    """
    files = sorted((folder / split).glob(f"*{CORPUS_SUFFIX}"))
    if not files:
        raise DataError(f"{folder / split}: no *{CORPUS_SUFFIX} file, so the corpus is empty; make it again")
    return {file.name.removesuffix(CORPUS_SUFFIX): file for file in files}


def suffix_of(path: Path) -> str | None:
    """The one of `SUFFIXES` that a file name ends with, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def source_files(path: Path) -> list[Path]:
    """The files that `read_texts` reads for a path, sorted; none for a placeholder.

    Raises:
        DataError: if there are none.
    """
    if is_placeholder(path):
        return []
    if path.is_dir():
        inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file() and suffix_of(file))
        files = sorted(file for file in inside if not any(part.startswith(".") for part in file.parts))
        if not files:
            raise DataError(f"{path}: no readable file in this folder; known suffixes: {', '.join(SUFFIXES)}")
        return [path / file for file in files]
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; use the path of a corpus file or of a folder of corpus files"
        )
    return [path]


def _read_file(path: Path, text_key: str) -> Iterator[str]:
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"{path}: unknown suffix '{path.suffix}'; known suffixes: {', '.join(SUFFIXES)}")
    try:
        if suffix in TEXT_SUFFIXES:
            yield from _plain_text(path)
        elif suffix in JSONL_SUFFIXES:
            yield from _json_lines(path, text_key)
        else:
            yield from _parquet(path, text_key)
    except OSError as problem:
        raise DataError(f"{path}: not readable ({problem.strerror or problem})") from None


def _plain_text(path: Path) -> Iterator[str]:
    parts: list[str] = []
    length = 0
    try:
        # newline="" keeps the line ends of the file.
        # utf-8-sig drops a byte order mark at the start.
        with open(path, encoding="utf-8-sig", newline="") as handle:
            while piece := handle.readline(MAX_TEXT):
                parts.append(piece)
                length += len(piece)
                if length >= MAX_TEXT:
                    yield "".join(parts)
                    parts, length = [], 0
    except UnicodeDecodeError as problem:
        raise DataError(f"{path}: not UTF-8 text ({problem.reason}); convert the file to UTF-8") from None
    yield "".join(parts)


def _json_lines(path: Path, text_key: str) -> Iterator[str]:
    for record, where in read_records(path):
        if text_key not in record:
            keys = ", ".join(sorted(record)) or "none"
            raise DataError(f"{where}: no key '{text_key}'; keys here: {keys}; set text_key to one of them")
        yield _checked_text(record[text_key], text_key, where)


def _checked_text(value: Any, text_key: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: '{text_key}' must be text, found {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: '{text_key}' contains half a surrogate pair, which is not a character"
        ) from None
    return value


def _parquet(path: Path, text_key: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_key not in columns:
                raise DataError(
                    f"{path}: no column '{text_key}'; columns here: {', '.join(columns)}; choose one with text_key"
                )
            row = 0
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=[text_key]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _checked_text(value, text_key, f"{path}: row {row}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as problem:
        reason = str(problem).splitlines()[0]
        raise DataError(f"{path}: damaged Parquet data ({reason}); fetch or write the file again") from None
