"""Terminal output: rank-0 logging and progress bars on stderr, result tables on stdout."""

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

# Modules whose warnings a user can do nothing about; the function mode of the CPU seam repeats torch's warnings.
UPSTREAM = (r"megatron\.core\b", r"torch\.distributed\b", r"megatron_prism\.platform\.cpu_seam\b")

# Without a terminal there is no width to respect, so a log line stays one line in a file.
FILE_WIDTH = 240
console = Console(stderr=True, width=None if sys.stderr.isatty() else FILE_WIDTH)
results = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)


def is_rank_zero() -> bool:
    """True in a single process and in rank 0 of a torchrun job (from the environment, so it works before init)."""
    return int(os.environ.get("RANK", "0")) == 0


def get_logger(name: str) -> logging.Logger:
    """A logger that logs on rank 0 only, except for warnings and errors, which it logs on every rank."""
    logger = logging.getLogger(name)
    logger.addFilter(lambda record: record.levelno >= logging.WARNING or is_rank_zero())
    return logger


def setup_logging(level: int = logging.INFO, handler: logging.Handler | None = None) -> None:
    """Log this package's lines with Rich. The command line and workers call this; it never runs at import.

    Args:
        handler: replaces Rich in a process that does not write to the terminal itself.
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
    # Otherwise each start warns a dozen times about missing extensions (see `prism doctor`) and torch's renamings.
    for module in UPSTREAM:
        warnings.filterwarnings("ignore", module=module)
    # transformers shows a progress bar for each folder that it loads.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # It also warns about a missing kernel for each kind of layer; its errors are still shown.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Warnings of torch's C++ code (W1128 ...): sockets that are retried, threads during a fork.
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
    """Yield a progress bar that disappears at the end; call its `.advance(0)`. Without a terminal nothing is shown."""
    live = console.is_terminal and is_rank_zero()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not live,
    ) as progress:
        progress.add_task(description, total=total)
        yield progress


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Iterate with a progress bar."""
    with progress_bar(description, total) as progress:
        for item in items:
            yield item
            progress.advance(progress.task_ids[0])
