"""`prism report`: the page of a run, made from its receipts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_prism.cli.output import JsonOption, check_json_target, show_line, write_result


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, e.g. runs/shoebox.")],
    json_file: JsonOption = None,
) -> None:
    """Write one HTML page about a run from what its finished stages left."""
    check_json_target(json_file)
    from megatron_prism.report.stage import build_report

    page = build_report(run_dir)
    show_line(json_file, f"report: {page}")
    write_result(json_file, {"report": str(page)})
