"""How the log lines of launched workers reach the launcher's terminal: through a file per rank beside the task.

Only this package's lines come this way. What libraries print in a worker stays in the launcher's log files, and stdout
stays free for results.
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
    """Appends each record as one JSON line; opened per line, so a killed worker has written what it said."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def emit(self, record: logging.LogRecord) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([record.levelno, record.getMessage()]) + "\n")


@contextmanager
def relay_lines(folder: Path) -> Iterator[None]:
    """The worker's side: this package's log lines go into `folder`, too."""
    handler = _ToFile(folder / LINES.format(rank=os.environ.get("RANK", "0")))
    root = logging.getLogger("megatron_prism")
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextmanager
def show_lines(folder: Path) -> Iterator[None]:
    """The launcher's side: while the block runs, lines that appear in `folder` are logged here; then the last ones."""
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
    """Log what stands in `file` after byte `start`, whole lines only; returns where the next begins."""
    with file.open("rb") as opened:
        opened.seek(start)
        for line in opened:
            if not line.endswith(b"\n"):
                break
            level, message = json.loads(line)
            log.log(level, "%s", message)
            start += len(line)
    return start
