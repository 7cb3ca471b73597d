"""The analyses of a run: those of its stages, and those of `prism analyze VERB ... --out RUN_DIR/analysis/NAME`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.analysis.result import read_analysis
from megatron_prism.analysis.view import View, view
from megatron_prism.errors import ArtifactError
from megatron_prism.report.paper.roles import roles
from megatron_prism.report.records import Run

KIND = "analysis_"
FOLDER = "analysis"
VERBS = ("weights", "direction", "spectrum", "trajectory", "cka", "confidence", "landscape")


@dataclass(frozen=True)
class Found:
    """One analysis.

    Attributes:
        name: of its stage or folder.
        folder: with the document.
        roles: label of a model in the document -> role, where it is known.
    """

    name: str
    folder: Path
    verb: str
    document: dict[str, Any]
    roles: Mapping[str, str]

    @property
    def view(self) -> View:
        """Its tables and figures.

        Raises:
            ArtifactError: if the document has not what they show.
        """
        try:
            return view(self.document)
        except (KeyError, TypeError, IndexError) as problem:
            raise ArtifactError(
                f"{self.folder}: {self.verb}.json is not a document of this version ({problem!r}); analyse again"
            ) from None


def stage_analyses(run: Run) -> list[Found]:
    """Those of stages, in the order of the run.

    Raises:
        ArtifactError: if a document is damaged or of another version.
    """
    known = roles(run)
    found = []
    for stage in run.stages:
        if stage.artifact is None or not stage.kind.startswith(KIND):
            continue
        verb = stage.kind.removeprefix(KIND)
        labels = {
            label: known[model]
            for label, parent in stage.inputs.items()
            if (model := _model_of(run, parent)) in known
        }
        found.append(
            Found(stage.name, stage.artifact.path, verb, read_analysis(stage.artifact.path, verb), labels)
        )
    return found


def folder_analyses(run: Run, run_dir: Path) -> list[Found]:
    """Those of RUN_DIR/analysis, by name; a label that is the name of a stage has its role."""
    known = roles(run)
    known |= _evaluated(run, known)
    parent = run_dir / FOLDER
    return [
        Found(str(folder.relative_to(parent)), folder, verb, read_analysis(folder, verb), known)
        for folder, verb in _folders(parent)
    ]


def _folders(parent: Path) -> Iterator[tuple[Path, str]]:
    """Each folder with a document, and its verb; a run folder, as a landscape has, is looked into."""
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        for place in (folder, *sorted(each for each in folder.glob("*") if each.name != "artifacts")):
            for verb in VERBS:
                if (place / f"{verb}.json").is_file():
                    yield place, verb


def _model_of(run: Run, stage: str) -> str:
    """The stage whose model an evaluation scored, or the stage itself."""
    record = next(each for each in run.stages if each.name == stage)
    return record.inputs.get("model", stage) if record.kind in ("evaluation", "ruler", "harness") else stage


def _evaluated(run: Run, known: Mapping[str, str]) -> dict[str, str]:
    """Evaluation stage -> the role of its model."""
    return {
        stage.name: known[model]
        for stage in run.stages
        if (model := _model_of(run, stage.name)) != stage.name and model in known
    }
