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
from megatron_prism.report.page import render_page
from megatron_prism.report.records import read_run, run_from_artifacts

REPORT = "report.html"


@dataclass
class Report(Stage):
    """Writes report.html; the inputs are the artifacts to report on, by stage name.

    Fields:
        title: the heading of the page.
        recipe: name of the recipe, for the commands shown on the page; if empty, there are none.
    """

    kind: ClassVar[str] = "report"
    version: ClassVar[int] = 2

    title: str = "megatron_prism run"
    recipe: str = ""

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        page = render_page(run_from_artifacts(inputs, self.recipe), self.title)
        (out / REPORT).write_text(page, encoding="utf-8")
        return {"stages": len(inputs), "bytes": len(page.encode())}


def build_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report.html from the artifacts that exist so far, and return its path.

    Raises:
        ArtifactError: if RUN_DIR is not a run folder, or a file of an artifact is damaged.
        ConfigError: if the page cannot be written.
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir)
    page = render_page(run, f"{run.recipe}: report of a run")
    target = run_dir / REPORT
    temporary = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"{target}: cannot write this file ({problem.strerror}); check its folder and the disk"
        ) from None
    return target
