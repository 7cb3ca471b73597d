"""Records to files of JSON lines, which `json_text.read_records` reads: in ASCII, and whole under their final name.

ASCII, because a text that a model sampled may hold half a surrogate pair, which UTF-8 refuses; JSON's escapes keep it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

COMPRESSION_LEVEL = 3


@contextmanager
def record_writer(
    path: Path, level: int = COMPRESSION_LEVEL
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds a record to `path`, which is there when the block ends well; otherwise nothing is left.

    Args:
        path: compressed where its name ends with .zst. Its folder is made.
        level: of compression.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with _opened(partial, path.suffix == ".zst", level) as handle:
            yield lambda record: _write(handle, record)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _opened(path: Path, compressed: bool, level: int) -> IO[bytes]:
    if not compressed:
        return open(path, "wb")
    import zstandard

    opened: IO[bytes] = zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(level=level))
    return opened


def _write(handle: IO[bytes], record: Mapping[str, Any]) -> None:
    handle.write(json.dumps(record).encode("ascii") + b"\n")
