"""How a verb of `prism analyze` hands over its result: tables, remarks, JSON, and a folder with Parquet and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.output import (
    STDOUT,
    check_json_target,
    show_line,
    show_remarks,
    write_result,
)

if TYPE_CHECKING:
    from megatron_prism.analysis.result import Analysis
    from megatron_prism.platform.text_table import Table

OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="New folder for the JSON, Parquet files and figures."),
]


def deliver(make: Callable[[], Analysis], out: Path | None, json_file: str | None) -> None:
    """Check both targets, make the analysis, show its tables and remarks, and write what was asked for."""
    check_json_target(json_file)
    from megatron_prism.analysis.result import write_analysis
    from megatron_prism.analysis.view import view
    from megatron_prism.pipeline.output_folder import check_free, whole_folder

    if out is not None:
        check_free(out)
    analysis = make()
    for each in view(analysis.document).tables:
        print_table(each, json_file)
    show_remarks(list(analysis.remarks))
    if out is not None:
        with whole_folder(out) as folder:
            write_analysis(analysis, folder)
        show_line(json_file, f"wrote {out}")
    write_result(json_file, analysis.document)


def print_table(shown: Table, json_file: str | None) -> None:
    """Print a table on stdout, or on stderr if `--json -` uses stdout."""
    from rich.table import Table as RichTable

    from megatron_prism.platform.console import console, results

    made = RichTable(title=shown.title, title_justify="left", header_style="bold")
    for column, numeric in zip(shown.columns, shown.numeric, strict=True):
        made.add_column(column, justify="right" if numeric else "left")
    for row in shown.rows:
        made.add_row(*row)
    (console if json_file == STDOUT else results).print(made)
