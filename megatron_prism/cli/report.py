"""`prism report`: write the HTML report of a run from its receipts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_prism.cli.output import JsonOption, check_json_target, show_line, write_result


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder, for example runs/shoebox.")],
    json_file: JsonOption = None,
) -> None:
    """Write one HTML page about a run from the artifacts of its finished stages."""
    check_json_target(json_file)
    from megatron_prism.report.stage import build_report

    page = build_report(run_dir)
    show_line(json_file, f"report: {page}")
    write_result(json_file, {"report": str(page)})
