"""Read JSON and text files that other programs wrote, by one set of rules for every reader.

- Text is UTF-8. A byte order mark at the start of a file is dropped; at the start of a later line it is an error,
  because it shows that files were joined; elsewhere it is an ordinary character.
- A line ends only at a line feed, with or without a carriage return before it. Blank lines are skipped.
- A record is a JSON object, nested at most `MAX_DEPTH` levels, without duplicate keys, with integers of at most 4,300
  digits. NaN and Infinity are read, as Python writes them; no text field accepts them.
- Half a surrogate pair, written `\\ud83d`, is not a character, and a record that contains one is refused. (A model's
  answer or the name of a folder may contain one, so readers of answers and receipts keep it.)
- A text without any visible character is blank (`is_blank`).

JSON files that are not JSON lines (a tokenizer's, a dataset's) follow the same rules, except for a duplicate key: its
last value counts, as in the programs that wrote them.
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError, PrismError

CHUNK_BYTES = 1 << 20
MAX_DEPTH = 100
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The first bytes of a pointer file, which replaces a large file in a clone without Git LFS.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
FETCH_LFS = "this is a Git LFS pointer instead of the file; fetch the file with `git lfs pull`"
INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
# Python's message for a number that is too long ends with advice for programmers.
ADVICE = "; use sys.set_int_max_str_digits"


def read_records(path: Path, keep_half_pairs: bool = False) -> Iterator[tuple[dict[str, Any], str]]:
    """The JSON objects of a file of JSON lines (also .gz or .zst), each with its FILE:LINE for error messages.

    Args:
        keep_half_pairs: accept half surrogate pairs, which sampled text may contain.

    Raises:
        DataError: for a file that cannot be read, or a line that breaks one of the rules above.
    """
    path = Path(path)
    try:
        for number, line in enumerate(lines(chunks(path)), 1):
            if line.strip():
                where = f"{path}:{number}"
                yield parse_record(line, where, keep_half_pairs), where
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as problem:
        raise DataError(f"{path}: not readable ({problem.strerror or problem})") from None


def parse_record(line: bytes, where: str, keep_half_pairs: bool = False) -> dict[str, Any]:
    """One line as a JSON object.

    Raises:
        DataError: names `where`.
    """
    if line.startswith(BYTE_ORDER_MARK):
        raise DataError(
            f"{where}: a byte order mark in the middle of the file, probably from joining files; remove it"
        )
    record = _parse(
        _decode(line, where),
        where,
        error=DataError,
        remedy="every line must be one JSON object",
        pairs_hook=_no_duplicate_keys,
    )
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON object is needed, found {type(record).__name__}")
    if not keep_half_pairs:
        _check_pairs(line.decode("utf-8"), record, where, DataError)
    return record


def read_json(path: Path, error: type[PrismError] = DataError, keep_half_pairs: bool = False) -> Any:
    """The contents of a JSON file.

    Args:
        keep_half_pairs: accept half surrogate pairs, which sampled text and file names may contain.

    Raises:
        error: names a file that is missing, not readable, or not JSON by the rules above.
    """
    text = read_text(path, error)
    found = _parse(text, str(path), error=error)
    if not keep_half_pairs:
        _check_pairs(text, found, str(path), error)
    return found


def read_object(
    path: Path, error: type[PrismError] = DataError, keep_half_pairs: bool = False
) -> dict[str, Any]:
    """The contents of a JSON file, which must be an object.

    Raises:
        error: as `read_json`, and for any other JSON value.
    """
    found = read_json(path, error, keep_half_pairs)
    if not isinstance(found, dict):
        raise error(f"{path}: a JSON object is needed, found {type(found).__name__}")
    return found


def read_text(path: Path, error: type[PrismError] = DataError) -> str:
    """The contents of a text file, with its line ends, without a byte order mark at the start.

    Raises:
        error: names a file that is missing, not readable, not UTF-8, or a Git LFS pointer.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except OSError as problem:
        raise error(f"{path}: not readable ({problem.strerror or problem})") from None
    if data.startswith(LFS_POINTER):
        raise error(f"{path}: {FETCH_LFS}")
    return _decode(data.removeprefix(BYTE_ORDER_MARK), str(path), error)


def is_blank(text: str) -> bool:
    """Whether a text has no visible character: it is empty, or white space, control and format characters only."""
    return all(unicodedata.category(character) in INVISIBLE for character in text)


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their line feeds; the last may lack one. A byte order mark before the first line is dropped."""
    parts: list[bytes] = []
    first = True
    for piece in pieces:
        head, *rest = piece.split(b"\n")
        parts.append(head)
        for following in rest:
            line = b"".join(parts)
            yield line.removeprefix(BYTE_ORDER_MARK) if first else line
            first, parts = False, [following]
    line = b"".join(parts)
    yield line.removeprefix(BYTE_ORDER_MARK) if first else line


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed if its name ends with .gz or .zst.

    Raises:
        DataError: for damaged or truncated data.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        return _gzip_chunks(path)
    return _zstd_chunks(path) if name.endswith(".zst") else _plain_chunks(path)


def _decode(data: bytes, where: str, error: type[PrismError] = DataError) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not UTF-8 text ({problem.reason}); convert the file to UTF-8") from None


def _parse(
    text: str,
    where: str,
    *,
    error: type[PrismError],
    remedy: str = "",
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    try:
        found = json.loads(text, object_pairs_hook=pairs_hook)
        too_deep = _is_deep(found) if text.count("[") + text.count("{") > MAX_DEPTH else False
    except RecursionError:
        too_deep = True
    except ValueError as problem:
        reason = str(problem).partition(ADVICE)[0]
        raise error(f"{where}: not JSON ({reason})" + (f"; {remedy}" if remedy else "")) from None
    if too_deep:
        raise error(f"{where}: JSON nested more than {MAX_DEPTH} levels deep")
    return found


def _no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key '{twice}' appears twice in one object")
    return found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inside: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inside.extend(each.values())
            elif isinstance(each, list):
                inside.extend(each)
        level = [each for each in inside if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _check_pairs(text: str, value: Any, where: str, error: type[PrismError]) -> None:
    if not HALF_PAIR.search(text):
        return
    names = value if isinstance(value, dict) else {"": value}
    for name, part in names.items():
        try:
            json.dumps({name: part}, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            shown = name.encode("ascii", "backslashreplace").decode("ascii")
            raise error(
                f"{where}: '{shown}' holds half a surrogate pair, which is not a character; correct or remove it"
            ) from None


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
    # Not stream_reader: it reads a file that was cut in the middle of a frame as a shorter file, without an error.
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
        raise DataError(
            f"{path}: damaged zstd data (the file is truncated); fetch or compress the file again"
        )
