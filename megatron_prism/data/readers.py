"""Documents out of files: plain text, JSON lines (also gzip or zstd), Parquet, or a folder of these.

Everything streams: at most a line, a row group or `LONGEST_TEXT` characters of a plain text file are in memory. What
is wrong with a file is said with its name and line, as a `DataError`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError

TEXT_SUFFIXES = (".txt", ".md", ".py")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET_SUFFIXES = (".parquet",)
SUFFIXES = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, *PARQUET_SUFFIXES)
# A plain text file is one document; a longer one is cut at line ends into documents of about this many characters.
LONGEST_TEXT = 1 << 20
CHUNK_BYTES = 1 << 20
ROWS_PER_BATCH = 1024
UTF8_MARK = b"\xef\xbb\xbf"
# A corpus artifact: SPLIT/SOURCE.jsonl.zst.
SPLITS = ("train", "valid")
CORPUS_SUFFIX = ".jsonl.zst"


def read_texts(path: Path, text_key: str = "text") -> Iterator[str]:
    """The non-empty documents of a file, or of a folder's files in sorted order (other files there are passed over).

    Args:
        path: a file with one of `SUFFIXES`, or a folder searched recursively.
        text_key: the key (JSON lines) or column (Parquet) that holds the text.

    Raises:
        DataError: for a file that is missing, empty, damaged or not of its format, naming file and line.
    """
    path = Path(path)
    count = 0
    for file in source_files(path):
        for text in _read_file(file, text_key):
            if text:
                count += 1
                yield text
    if not count:
        raise DataError(
            f"{path}: empty corpus, not one document with text; check the path and text_key='{text_key}'"
        )


def corpus_sources(folder: Path, split: str) -> dict[str, Path]:
    """The source files of a corpus folder's split: name -> path, sorted.

    Raises:
        DataError: when there are none.
    """
    files = sorted((folder / split).glob(f"*{CORPUS_SUFFIX}"))
    if not files:
        raise DataError(f"{folder / split}: no *{CORPUS_SUFFIX} file, so the corpus is empty; make it anew")
    return {file.name.removesuffix(CORPUS_SUFFIX): file for file in files}


def suffix_of(path: Path) -> str | None:
    """Which of `SUFFIXES` a file name ends with, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def source_files(path: Path) -> list[Path]:
    """The files `read_texts` reads for a path, sorted.

    Raises:
        DataError: when there is none.
    """
    if path.is_dir():
        inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file() and suffix_of(file))
        files = sorted(file for file in inside if not any(part.startswith(".") for part in file.parts))
        if not files:
            raise DataError(f"{path}: no readable file in this folder; known: {', '.join(SUFFIXES)}")
        return [path / file for file in files]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give the path of a corpus file or a folder of them")
    return [path]


def _read_file(path: Path, text_key: str) -> Iterator[str]:
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"{path}: unknown kind of file '{path.suffix}'; known: {', '.join(SUFFIXES)}")
    try:
        if suffix in TEXT_SUFFIXES:
            yield from _plain_text(path)
        elif suffix in JSONL_SUFFIXES:
            yield from _json_lines(path, suffix, text_key)
        else:
            yield from _parquet(path, text_key)
    except OSError as problem:
        raise DataError(f"{path}: not readable ({problem.strerror or problem})") from None


def _plain_text(path: Path) -> Iterator[str]:
    parts: list[str] = []
    length = 0
    try:
        # newline="" keeps the line ends as they are: what comes out is what the file holds.
        with open(path, encoding="utf-8", newline="") as handle:
            while piece := handle.readline(LONGEST_TEXT):
                parts.append(piece)
                length += len(piece)
                if length >= LONGEST_TEXT:
                    yield "".join(parts)
                    parts, length = [], 0
    except UnicodeDecodeError as problem:
        raise DataError(f"{path}: not UTF-8 text ({problem.reason}); convert the file to UTF-8") from None
    yield "".join(parts)


def _json_lines(path: Path, suffix: str, text_key: str) -> Iterator[str]:
    chunks = {".jsonl": _plain_chunks, ".jsonl.gz": _gzip_chunks, ".jsonl.zst": _zstd_chunks}[suffix]
    for number, line in enumerate(_lines(chunks(path)), 1):
        if number == 1:
            line = line.removeprefix(UTF8_MARK)
        if line.strip():
            yield _text_of(line, text_key, f"{path}:{number}")


def _text_of(line: bytes, text_key: str, where: str) -> str:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as problem:
        raise DataError(f"{where}: not UTF-8 text ({problem.reason}); convert the file to UTF-8") from None
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{where}: not JSON ({problem}); every line must be one JSON object") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON object is needed, found {type(record).__name__}")
    if text_key not in record:
        keys = ", ".join(sorted(record)) or "none"
        raise DataError(f"{where}: no key '{text_key}'; keys here: {keys}; choose one with text_key")
    return _checked_text(record[text_key], text_key, where)


def _checked_text(value: Any, text_key: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: '{text_key}' must be text, found {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: '{text_key}' holds half a surrogate pair, which is no character") from None
    return value


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their line ends; the last one needs none."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        for piece in rest:
            yield b"".join(parts)
            parts = [piece]
    yield b"".join(parts)


def _plain_chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as handle:
        yield from iter(lambda: handle.read(CHUNK_BYTES), b"")


def _gzip_chunks(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as handle:
        read: Callable[[], bytes] = lambda: handle.read(CHUNK_BYTES)  # noqa: E731
        try:
            yield from iter(read, b"")
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise DataError(
                f"{path}: damaged gzip data ({problem}); fetch or compress the file again"
            ) from None


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    # Not stream_reader: that takes a file cut in the middle of a frame for a shorter file.
    frame, complete = decompressor.decompressobj(), True
    try:
        for chunk in _plain_chunks(path):
            while chunk:
                complete = False
                yield frame.decompress(chunk)
                chunk = b""
                if frame.eof:
                    chunk, complete = frame.unused_data, True
                    frame = decompressor.decompressobj()
    except zstandard.ZstdError as problem:
        raise DataError(f"{path}: damaged zstd data ({problem}); fetch or compress the file again") from None
    if not complete:
        raise DataError(f"{path}: damaged zstd data (it ends too early); fetch or compress the file again")


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
