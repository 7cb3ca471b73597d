"""The report as a stage of a recipe, and the report of a run folder, finished or not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import PARTIAL_SUFFIX, Artifact
from megatron_prism.pipeline.stage import Stage
from megatron_prism.report.page import PAPER, render_page
from megatron_prism.report.paper.analyses import folder_analyses
from megatron_prism.report.paper.page import render_paper
from megatron_prism.report.records import read_run, run_from_artifacts

REPORT = "report.html"


@dataclass
class Report(Stage):
    """Writes report.html, and paper.html with the forms of the paper's tables.

    The inputs are the artifacts to report on, by stage name.

    Fields:
        title: the heading of the page.
        recipe: name of the recipe, for the commands shown on the page; if empty, there are none.
    """

    kind: ClassVar[str] = "report"
    # 2: the table of scores fits a page. 3: paper.html.
    version: ClassVar[int] = 3

    title: str = "megatron_prism run"
    recipe: str = ""

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        run = run_from_artifacts(inputs, self.recipe)
        page = render_page(run, self.title)
        (out / REPORT).write_text(page, encoding="utf-8")
        paper = render_paper(run, f"{self.title}, in the forms of the paper")
        (out / PAPER).write_text(paper, encoding="utf-8")
        return {"stages": len(inputs), "bytes": len(page.encode())}


def build_report(run_dir: Path) -> tuple[Path, Path]:
    """Write report.html and paper.html into RUN_DIR from the artifacts that exist so far, and return their paths.

    Raises:
        ArtifactError: if RUN_DIR is not a run folder, or a file of an artifact is damaged.
        ConfigError: if a page cannot be written.
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir)
    analyses = folder_analyses(run, run_dir)
    pages = {
        REPORT: render_page(run, f"{run.recipe}: report of a run"),
        PAPER: render_paper(run, f"{run.recipe}: the paper's tables and figures", str(run_dir), analyses),
    }
    for name, page in pages.items():
        _write(run_dir / name, page)
    return run_dir / REPORT, run_dir / PAPER


def _write(target: Path, page: str) -> None:
    """Replace a page in one step."""
    temporary = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"{target}: cannot write this file ({problem.strerror}); check its folder and the disk"
        ) from None
