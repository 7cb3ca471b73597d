"""The file that tells a job which stage to run: `RUN_DIR/launch/STAGE-FINGERPRINT.json`.

Its name and content depend only on the recipe, so a dry run shows the very command of a live run. The inputs are named
by the folders that they will have; they need not exist when the job is submitted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import from_mapping, to_mapping
from megatron_prism.pipeline.node import Located
from megatron_prism.pipeline.stage import Stage
from megatron_prism.pipeline.stage_class import FILE, class_reference, find_class

LAUNCH = "launch"


@dataclass(frozen=True)
class JobFile:
    """One stage as a job.

    Attributes:
        name: of the stage in its recipe.
        stage_class: see `pipeline/stage_class.py`.
        folder: of the artifact, below the run folder.
        inputs: name -> folder of an artifact, below the run folder.
        again: whether the stage runs although its artifact exists.
    """

    name: str
    stage_class: dict[str, str]
    config: dict[str, Any]
    fingerprint: str
    folder: str
    inputs: dict[str, str] = field(default_factory=dict)
    again: bool = False

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.fingerprint[:12]}.json"

    def stage(self) -> Stage:
        found = find_class(self.stage_class)
        return from_mapping(found, self.config, where=f"stage '{self.name}'")


def job_of(each: Located, run_dir: Path, folders: Mapping[str, Path], *, again: bool = False) -> JobFile:
    """The job of a node.

    Args:
        folders: of the artifacts of all nodes, by name.
    """
    node = each.node
    return JobFile(
        name=node.name,
        stage_class=class_reference(type(node.stage)),
        config=to_mapping(node.stage),
        fingerprint=each.fingerprint,
        folder=str(each.folder.relative_to(run_dir)),
        inputs={key: str(folders[parent.name].relative_to(run_dir)) for key, parent in node.inputs.items()},
        again=again,
    )


def job_path(job: JobFile, run_dir: Path) -> Path:
    return run_dir.resolve() / LAUNCH / job.file_name


def write_job(job: JobFile, run_dir: Path) -> Path:
    """Write the file of a job; the module of a recipe's own stages is copied next to it, as it is now."""
    path = job_path(job, run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = asdict(job)
    if FILE in job.stage_class:
        source = Path(job.stage_class[FILE])
        copy = path.with_suffix(".py")
        copy.write_bytes(source.read_bytes())
        content["stage_class"] = {**job.stage_class, FILE: str(copy)}
    write_json(path, content)
    return path


def read_job(path: Path) -> JobFile:
    """Raises an ArtifactError if the file is missing or was not written by `write_job`."""
    try:
        return JobFile(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: no such file on this machine; the run folder must be on a file system that all nodes share"
        ) from None
    except (ValueError, TypeError) as problem:
        raise ArtifactError(f"{path}: not the file of a job ({problem}); submit the recipe again") from None


def open_inputs(job: JobFile, run_dir: Path) -> dict[str, Artifact]:
    return {key: Artifact.open(run_dir / folder) for key, folder in job.inputs.items()}
