"""A verb's results: a table for people on stdout, JSON for machines in a file ('-': alone on stdout)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_prism.errors import ConfigError

JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; '-' is stdout.")
]
STDOUT = "-"


def check_json_target(target: str | None) -> None:
    """Refuse a JSON file that cannot be written before the work, not after it."""
    if target is None or target == STDOUT:
        return
    folder = Path(target).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--json {target}: {folder} is not a folder that can be written to")
    if Path(target).is_dir():
        raise ConfigError(f"--json {target}: is a folder, a file name is needed")


def write_result(target: str | None, value: Any) -> None:
    """Write `value` where `--json` says; a file is replaced in one step."""
    if target is None:
        return
    if target == STDOUT:
        print(json.dumps(value, indent=2))
        return
    from megatron_prism.pipeline.artifact import write_json

    write_json(Path(target), value)


def show_table(
    target: str | None, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Print a table: on stdout, or on stderr when `--json -` has taken stdout."""
    from megatron_prism.platform.console import console, results, table

    (console if target == STDOUT else results).print(table(title, columns, rows))


def show_line(target: str | None, line: str) -> None:
    """Print one line beside the tables, never wrapped, so that a path can be copied."""
    from megatron_prism.platform.console import console, results

    (console if target == STDOUT else results).print(line, markup=False, highlight=False, soft_wrap=True)


def show_remarks(remarks: Sequence[str]) -> None:
    """Print what a user should hear, one line each, on stderr."""
    for remark in remarks:
        typer.echo(f"note: {remark}", err=True)


@contextmanager
def bytes_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar in bytes on stderr, on a terminal only; it leaves nothing behind."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from megatron_prism.platform.console import console

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
