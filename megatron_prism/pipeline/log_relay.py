"""Relay the log lines of launched workers to the launcher's terminal, through one file per rank next to the task file.

Only log lines of this package are relayed. What libraries print in a worker stays in the launcher's log files, and
stdout is left for results.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.2
LINES = "lines-{rank}.jsonl"

log = logging.getLogger(__name__)


class _ToFile(logging.Handler):
    """Appends each record as one JSON line. The file is opened per line, so a killed worker loses nothing."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def emit(self, record: logging.LogRecord) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([record.levelno, record.getMessage()]) + "\n")


@contextmanager
def relay_lines(folder: Path) -> Iterator[None]:
    """In a worker: also write this package's log lines into `folder`."""
    handler = _ToFile(folder / LINES.format(rank=os.environ.get("RANK", "0")))
    root = logging.getLogger("megatron_prism")
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextmanager
def show_lines(folder: Path) -> Iterator[None]:
    """In the launcher: log the lines that workers write into `folder`, until the block ends."""
    ended = threading.Event()
    reader = threading.Thread(target=_follow, args=(folder, ended), name="relayed lines", daemon=True)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()


def _follow(folder: Path, ended: threading.Event) -> None:
    places: dict[Path, int] = {}
    while True:
        last = ended.wait(POLL_SECONDS)
        for file in sorted(folder.glob(LINES.format(rank="*"))):
            places[file] = _show(file, places.get(file, 0))
        if last:
            return


def _show(file: Path, start: int) -> int:
    """Log the complete lines of `file` after byte `start`; return the position after the last one."""
    with file.open("rb") as opened:
        opened.seek(start)
        for line in opened:
            if not line.endswith(b"\n"):
                break
            level, message = json.loads(line)
            log.log(level, "%s", message)
            start += len(line)
    return start
