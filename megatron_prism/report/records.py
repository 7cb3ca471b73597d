"""The data of a report: the stages of a run with their status, and the training curves.

A run is read from the graph.json of its folder, with stages that have not run yet, or built from artifacts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_prism.errors import ArtifactError, DataError
from megatron_prism.pipeline.artifact import Artifact, partial_path
from megatron_prism.pipeline.json_text import read_object, read_records

Status = Literal["done", "unfinished", "damaged", "not made"]
METRICS = "metrics.jsonl"
REPORT_KIND = "report"
CURVES = ("loss", "lr")


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run; `inputs` maps the name of each input to the stage that made it."""

    name: str
    kind: str
    status: Status
    inputs: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    artifact: Artifact | None = None
    problem: str = ""


@dataclass(frozen=True)
class Run:
    """The stages of a run in order; `recipe` is empty if it is unknown."""

    stages: list[StageRecord]
    recipe: str = ""

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The finished artifacts by stage name, in order."""
        return {stage.name: stage.artifact for stage in self.stages if stage.artifact is not None}


@dataclass
class History:
    """The curves of one training stage as `(step, value)` points; validation losses by source."""

    loss: list[tuple[int, float]] = field(default_factory=list)
    lr: list[tuple[int, float]] = field(default_factory=list)
    validation: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def run_from_artifacts(artifacts: Mapping[str, Artifact], recipe: str = "") -> Run:
    """A run of finished artifacts by stage name; fingerprints show which stage made which input."""
    makers = {artifact.fingerprint: name for name, artifact in artifacts.items()}
    stages = [
        StageRecord(
            name=name,
            kind=artifact.kind,
            status="done",
            inputs={key: makers[made] for key, made in artifact.receipt.inputs.items() if made in makers},
            config=artifact.receipt.config,
            artifact=artifact,
        )
        for name, artifact in artifacts.items()
    ]
    return Run([stage for stage in stages if stage.kind != REPORT_KIND], recipe)


def read_run(run_dir: Path) -> Run:
    """The run in a run folder, with the status of every stage, without report stages.

    Raises:
        ArtifactError: if the folder does not exist, or its graph.json is missing or damaged.
    """
    file = run_dir / "graph.json"
    if not run_dir.is_dir():
        kind = "this is not a folder" if run_dir.exists() else "no such run folder"
        raise ArtifactError(f"{run_dir}: {kind}")
    if not file.exists():
        raise ArtifactError(f"{run_dir}: the folder has no graph.json; give a run folder of `prism run`")
    try:
        graph = read_object(file, ArtifactError, keep_half_pairs=True)
        records = [_stage(run_dir, item) for item in graph["stages"] if item["kind"] != REPORT_KIND]
        recipe = str(graph["recipe"])
    except ArtifactError as problem:
        raise ArtifactError(f"{problem}; run the recipe again to rewrite it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ArtifactError(
            f"{file}: not the graph of a run ({problem!r}); run the recipe again to rewrite it"
        ) from None
    names = {record.name for record in records}
    for record in records:
        for parent in record.inputs.values():
            if parent not in names:
                raise ArtifactError(
                    f"{file}: stage '{record.name}' has the input '{parent}', which is not a stage; "
                    "run the recipe again to rewrite it"
                )
    return Run(records, recipe)


def read_history(artifact: Artifact) -> History | None:
    """The curves of a training artifact, or None if it has no metrics.jsonl.

    If a step was logged twice, before and after a resume, the later line counts.

    Raises:
        ArtifactError: names file and line of a line that is not a metrics record.
    """
    file = artifact.path / METRICS
    if not file.is_file():
        return None
    curves: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    validation: dict[str, dict[int, float]] = {}
    try:
        for record, where in read_records(file):
            try:
                step = int(record["step"])
                for source, loss in record.get("validation", {}).items():
                    validation.setdefault(source, {})[step] = float(loss)
                for name in CURVES:
                    if record.get(name) is not None:
                        curves[name][step] = float(record[name])
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as problem:
                raise ArtifactError(f"{where}: not a metrics record ({problem!r})") from None
    except DataError as problem:
        raise ArtifactError(f"{problem}; not a metrics record") from None
    return History(
        loss=_points(curves["loss"]),
        lr=_points(curves["lr"]),
        validation={source: _points(values) for source, values in validation.items()},
    )


def _points(values: Mapping[int, float]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in sorted(values.items()) if math.isfinite(value)]


def _stage(run_dir: Path, item: Mapping[str, Any]) -> StageRecord:
    folder = run_dir / str(item["folder"])
    artifact, problem = None, ""
    status: Status = "not made"
    if folder.exists():
        try:
            artifact, status = Artifact.open(folder, kind=item["kind"]), "done"
        except ArtifactError as reason:
            problem, status = str(reason), "damaged"
    elif partial_path(folder).exists():
        status = "unfinished"
    return StageRecord(
        name=str(item["name"]),
        kind=str(item["kind"]),
        status=status,
        inputs={str(key): str(parent) for key, parent in item["inputs"].items()},
        config=dict(item["config"]),
        artifact=artifact,
        problem=problem,
    )
