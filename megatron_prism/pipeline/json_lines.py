"""Write records to files of JSON lines (`json_text.read_records` reads them), complete when under their final name.

The files are ASCII: a text that a model sampled may contain half a surrogate pair, which UTF-8 cannot encode but a JSON
escape can.
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
    """Yield a function that appends a record; `path` appears if the block succeeds, otherwise nothing is left.

    Args:
        path: compressed if its name ends with .zst; its folder is created.
        level: compression level.
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
