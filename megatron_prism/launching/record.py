"""What was submitted from a run folder: `RUN_DIR/launch/submissions/NUMBER.json`."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_prism.errors import ArtifactError
from megatron_prism.launching.job_file import LAUNCH
from megatron_prism.pipeline.artifact import write_json

SUBMISSIONS = f"{LAUNCH}/submissions"


@dataclass
class SubmittedTask:
    """One stage of a submission.

    Attributes:
        job: the number of the job on the cluster; empty for a task that is not submitted yet, or needs no number.
        logs: pattern of its log files.
        state: of a task that a cluster does not know: 'running', 'done', 'failed', or 'not started'.
        folder: of the artifact that it makes, below the run folder.
        entry: the name of its script: its own, or that of the array which it is part of.
        place: in the array; -1 for a job of its own.
    """

    job: str
    logs: str
    after: list[str] = field(default_factory=list)
    nodes: int = 1
    processes: int = 1
    state: str = ""
    folder: str = ""
    entry: str = ""
    place: int = -1

    def number_in(self, job: str) -> str:
        """The number of this task's job, if `job` is what sbatch printed for its script."""
        return job if self.place < 0 or not job else f"{job}_{self.place}"


@dataclass
class Submission:
    """Stages that were submitted together."""

    number: int
    recipe: str
    kind: str
    executor: str
    submitted: str
    tasks: dict[str, SubmittedTask] = field(default_factory=dict)

    def save(self, run_dir: Path) -> None:
        write_json(self._file(run_dir), asdict(self))

    def claim_number(self, run_dir: Path) -> None:
        """Take the next number that no other submission of this run folder has, and save."""
        while True:
            self.number = next_number(run_dir)
            self._file(run_dir).parent.mkdir(parents=True, exist_ok=True)
            # Another process must never see half of it, not even if this one is killed.
            temporary = self._file(run_dir).with_suffix(f".{uuid.uuid4().hex}")
            temporary.write_text(json.dumps(asdict(self)))
            try:
                os.link(temporary, self._file(run_dir))
            except FileExistsError:
                continue
            finally:
                temporary.unlink()
            return

    def _file(self, run_dir: Path) -> Path:
        return run_dir / SUBMISSIONS / f"{self.number:04d}.json"


def with_dependants(names: Collection[str], tasks: Mapping[str, SubmittedTask]) -> set[str]:
    """The named stages, and those that wait for them, directly or indirectly."""
    found = set(names)
    while more := {name for name, task in tasks.items() if name not in found and found & set(task.after)}:
        found |= more
    return found


def next_number(run_dir: Path) -> int:
    """The number of the next submission of this run folder."""
    taken = [int(path.stem) for path in _records(run_dir)]
    return max(taken, default=0) + 1


def _records(run_dir: Path) -> list[Path]:
    files = [path for path in (run_dir / SUBMISSIONS).glob("*.json") if path.stem.isdecimal()]
    return sorted(files, key=lambda path: int(path.stem))


def read_submissions(run_dir: Path) -> list[Submission]:
    """All submissions of a run folder, oldest first.

    Raises:
        ArtifactError: for a damaged file.
    """
    found = []
    for path in _records(run_dir):
        try:
            raw = json.loads(path.read_text())
            raw["tasks"] = {name: SubmittedTask(**task) for name, task in raw["tasks"].items()}
            found.append(Submission(**raw))
        except (ValueError, TypeError, KeyError) as problem:
            raise ArtifactError(f"{path}: not the record of a submission ({problem}); remove it") from None
    return found


def latest_tasks(run_dir: Path) -> dict[str, tuple[Submission, SubmittedTask]]:
    """The last submission of every stage, by name."""
    return {
        name: (submission, task)
        for submission in read_submissions(run_dir)
        for name, task in submission.tasks.items()
    }
