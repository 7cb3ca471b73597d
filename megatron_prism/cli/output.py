"""The results of a verb: a table on stdout, and JSON in a file ('-': only JSON on stdout)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_prism.errors import ConfigError

JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; '-' means stdout.")
]
STDOUT = "-"


def check_json_target(target: str | None) -> None:
    """Raise a ConfigError before the work starts if the JSON file cannot be written."""
    if target is None or target == STDOUT:
        return
    folder = Path(target).resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--json {target}: {folder} is not a writable folder; choose another path")
    if Path(target).is_dir():
        raise ConfigError(f"--json {target}: this is a folder; give the path of a file")


def write_result(target: str | None, value: Any) -> None:
    """Write `value` to the target of `--json`; a file is replaced in one step."""
    if target is None:
        return
    if target == STDOUT:
        print(json.dumps(value, indent=2))
        return
    from megatron_prism.pipeline.artifact import write_json

    try:
        write_json(Path(target), value)
    except OSError as problem:
        raise ConfigError(f"--json {target}: cannot write this file ({problem.strerror})") from None


def show_table(
    target: str | None, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Print a table on stdout, or on stderr if `--json -` uses stdout."""
    from megatron_prism.platform.console import console, results, table

    (console if target == STDOUT else results).print(table(title, columns, rows))


def show_line(target: str | None, line: str) -> None:
    """Print one line where tables go, without wrapping, so that a path can be copied."""
    from megatron_prism.platform.console import console, results

    (console if target == STDOUT else results).print(line, markup=False, highlight=False, soft_wrap=True)


def shortened_inputs(inputs: Mapping[str, str], most: int = 2) -> str:
    """The stages that a stage reads, its model first, and how many more; all stages with a model read its tokenizer."""
    ordered = sorted(inputs.items(), key=lambda each: each[0] not in ("init", "model"))
    names = list(dict.fromkeys(name for key, name in ordered if key != "tokenizer" or len(inputs) == 1))
    more = f" + {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def show_remarks(remarks: Sequence[str]) -> None:
    """Print remarks on stderr, one line each."""
    for remark in remarks:
        typer.echo(f"note: {remark}", err=True)


@contextmanager
def bytes_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar in bytes on stderr, which disappears at the end; only on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from megatron_prism.platform.console import console

    with Progress(
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
