"""What people see: rank-0 logging, tables and progress bars, all on stderr so that stdout stays for results."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

T = TypeVar("T")

# Modules whose warnings are not this program's reader's to mend; the function mode of the CPU seam repeats torch's.
UPSTREAM = (r"megatron\.core\b", r"torch\.distributed\b", r"megatron_prism\.platform\.cpu_seam\b")

# Without a terminal there is no width to keep to: a log line stays one line in a file, too.
FILE_WIDTH = 240
console = Console(stderr=True, width=None if sys.stderr.isatty() else FILE_WIDTH)
results = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)


def is_rank_zero() -> bool:
    """True in a plain process and in rank 0 of a torchrun job (read from the environment: works before init)."""
    return int(os.environ.get("RANK", "0")) == 0


def get_logger(name: str) -> logging.Logger:
    """A logger that speaks on rank 0 only (warnings and errors on every rank)."""
    logger = logging.getLogger(name)
    logger.addFilter(lambda record: record.levelno >= logging.WARNING or is_rank_zero())
    return logger


def setup_logging(level: int = logging.INFO, handler: logging.Handler | None = None) -> None:
    """Send this package's log lines through Rich. Called by the command line and by workers, never at import.

    Args:
        handler: takes the lines in place of Rich, for a process that does not own the terminal.
    """
    root = logging.getLogger("megatron_prism")
    if not root.handlers:
        root.addHandler(
            handler
            or RichHandler(
                console=console,
                show_path=False,
                show_level=False,
                markup=False,
                highlighter=NullHighlighter(),
                log_time_format="[%X]",
            )
        )
        root.propagate = False
    root.setLevel(level)
    # A dozen times at each start: which extension is absent (`prism doctor` says it once), what torch renamed.
    for module in UPSTREAM:
        warnings.filterwarnings("ignore", module=module)
    # transformers draws a bar of its own for each folder it loads.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # And tells of a kernel that is absent for each kind of layer; its errors remain.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # What torch's C++ warns of (W1128 ...): sockets that it tries again, threads at a fork.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A Rich table; numbers are right-aligned."""
    made = Table(title=title, title_justify="left", header_style="bold")
    content = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in content) and bool(content)
        made.add_column(column, justify="right" if numeric else "left")
    for row in content:
        made.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return made


@contextmanager
def progress_bar(description: str, total: float | None = None) -> Iterator[Progress]:
    """A transient progress bar on a terminal, silent elsewhere; call `.advance(0)` on what it yields."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    live = console.is_terminal and is_rank_zero()
    with Progress(*columns, console=console, transient=True, disable=not live) as progress:
        progress.add_task(description, total=total)
        yield progress


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Iterate with a progress bar."""
    with progress_bar(description, total) as progress:
        for item in items:
            yield item
            progress.advance(progress.task_ids[0])
