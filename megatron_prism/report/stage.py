"""The report as a stage of a recipe, and the report of any run folder, finished or not."""

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
    """Writes report.html; inputs: every artifact to report on, under its stage's name.

    Fields:
        title: the page's heading.
        recipe: name of the recipe, for the commands the page gives; empty leaves them out.
    """

    kind: ClassVar[str] = "report"

    title: str = "megatron_prism run"
    recipe: str = ""

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        page = render_page(run_from_artifacts(inputs, self.recipe), self.title)
        (out / REPORT).write_text(page, encoding="utf-8")
        return {"stages": len(inputs), "bytes": len(page.encode())}


def build_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report.html from whatever the run has made so far, and return its path.

    Raises:
        ArtifactError: if RUN_DIR is no run folder, or a finished artifact's file is damaged.
        ConfigError: if the page cannot be written there.
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
            f"{target}: cannot be written ({problem.strerror}); check the folder and the disk"
        ) from None
    return target
