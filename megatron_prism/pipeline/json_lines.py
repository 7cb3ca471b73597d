"""Write records to files of JSON lines (`json_text.read_records` reads them), complete when under their final name.

By default the files are ASCII: a text that a model sampled may contain half a surrogate pair, which UTF-8 cannot encode
but a JSON escape can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

COMPRESSION_LEVEL = 3


@contextmanager
def record_writer(
    path: Path, encoding: Literal["ascii", "utf-8"] = "ascii"
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that appends a record; `path` appears if the block succeeds, otherwise nothing is left.

    Args:
        path: compressed if its name ends with .zst; its folder is created.
        encoding: 'utf-8' for text that is known to be valid, such as documents read from files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with _opened(partial, path.suffix == ".zst") as handle:
            yield lambda record: _write(handle, record, encoding)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _opened(path: Path, compressed: bool) -> IO[bytes]:
    if not compressed:
        return open(path, "wb")
    import zstandard

    opened: IO[bytes] = zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(level=COMPRESSION_LEVEL))
    return opened


def _write(handle: IO[bytes], record: Mapping[str, Any], encoding: str) -> None:
    handle.write(json.dumps(record, ensure_ascii=encoding == "ascii").encode(encoding) + b"\n")
