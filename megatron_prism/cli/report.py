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
    """Write two HTML pages about a run from the artifacts of its finished stages: a report, and the paper's tables."""
    check_json_target(json_file)
    from megatron_prism.report.stage import build_report

    page, paper = build_report(run_dir)
    show_line(json_file, f"report: {page}")
    show_line(json_file, f"paper's tables: {paper}")
    write_result(json_file, {"report": str(page), "paper": str(paper)})
