"""The states that a run has saved: the record next to each, and which of them are whole. Nothing here loads torch.

While a run lasts it saves to `resume/step_N`, and every `keep_every` steps to `checkpoints/step_N`; at its end to
`checkpoint`. The record is written last, so a folder without one is incomplete. It lists the files with their sizes.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_prism.errors import CheckpointError
from megatron_prism.models.model_folder import CHECKPOINT
from megatron_prism.pipeline.artifact import PARTIAL_SUFFIX, RESUME
from megatron_prism.platform.console import get_logger

RECORD = "training_state.json"
# Raised when this version would misread what an older version wrote, or the reverse. Format 1 had only the progress.
FORMAT = 2
KEPT = "checkpoints"
# Model folders with the weights of some steps, for analysis.
WEIGHTS = "weights"
OLD_SUFFIX = ".old"
UNFINISHED = (PARTIAL_SUFFIX, OLD_SUFFIX)

log = get_logger(__name__)


class DamagedCheckpoint(CheckpointError):
    """A checkpoint with a missing, truncated or unreadable file."""


@dataclass(frozen=True)
class Record:
    """What the files of a checkpoint hold.

    Attributes:
        progress: the fields of `TrainingState`.
        layout: the parallel sizes, by the names of `ParallelConfig`.
        optimizer: the format of the optimizer's state; empty if it was not saved.
        buckets: a hash of the buckets into which the distributed optimizer has divided the parameters.
        fp8_history: whether Transformer Engine's FP8 scales are included.
        final_of: the number of steps of the run that ended with this state; 0 for a state to resume from.
        architecture: the fields of the model's architecture.
        files: relative path and size of each file.
    """

    progress: dict[str, Any]
    layout: dict[str, Any] = field(default_factory=dict)
    optimizer: str = ""
    buckets: str = ""
    fp8_history: bool = False
    final_of: int = 0
    architecture: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return int(self.progress["step"])


@dataclass(frozen=True)
class SavedState:
    """A whole checkpoint on disk."""

    folder: Path
    record: Record

    @property
    def step(self) -> int:
        return self.record.step

    @property
    def has_optimizer(self) -> bool:
        return bool(self.record.optimizer)

    def ends(self, steps: int) -> bool:
        """Whether a run of this many steps has ended with this state, so that nothing is left to train."""
        return self.record.final_of == steps

    def serves(self, steps: int) -> bool:
        """Whether a run of this many steps can go on from this state."""
        return self.ends(steps) or (self.has_optimizer and self.step <= steps)


def step_folder(parent: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return parent / f"step_{step:07d}"


def resumable_states(out: Path) -> list[SavedState]:
    """The whole checkpoints of a run or a finished artifact, newest first; a warning names each damaged one.

    Raises:
        CheckpointError: if one was written by a newer version of this package.
    """
    folders = [*(out / RESUME).glob("step_*"), *(out / KEPT).glob("step_*"), out / CHECKPOINT]
    whole = []
    for folder in folders:
        if folder.suffix in UNFINISHED or not (folder / RECORD).exists():
            continue
        try:
            whole.append(read_state(folder))
        except DamagedCheckpoint as problem:
            log.warning("%s; an older checkpoint is used", problem)
    return sorted(whole, key=lambda state: (state.step, state.has_optimizer), reverse=True)


def read_state(folder: Path) -> SavedState:
    """The checkpoint in `folder`, whose files are there with their recorded sizes.

    Raises:
        DamagedCheckpoint: names the first file that is missing, truncated or unreadable.
        CheckpointError: if it was written by a newer version of this package.
    """
    path = folder / RECORD
    try:
        content = json.loads(path.read_text())
        written = content.pop("format", 1)
        if written > FORMAT:
            raise CheckpointError(
                f"{folder}: a checkpoint of format {written}, but this version of megatron_prism reads formats up to "
                f"{FORMAT}; use the version that wrote it, or a newer one"
            )
        if written == 1:
            # Format 1 was written in one way only.
            content = {"progress": content, "optimizer": "fully_reshardable"}
        known = {each.name for each in fields(Record)}
        record = Record(**{key: value for key, value in content.items() if key in known})
        files = {str(name): int(size) for name, size in record.files.items()}
        int(record.progress["step"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise DamagedCheckpoint(f"{path}: not a readable record of a checkpoint ({reason})") from None
    for name, size in files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            raise DamagedCheckpoint(f"{folder}: damaged checkpoint: {name} is missing") from None
        if found != size:
            raise DamagedCheckpoint(
                f"{folder}: damaged checkpoint: {name} has {found} bytes, and was written with {size}"
            )
    return SavedState(folder, record)


def write_record(folder: Path, record: Record) -> None:
    """Complete a checkpoint with its record, which lists all files that are in the folder now."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    content = {"format": FORMAT, **asdict(record), "files": files}
    with open(folder / RECORD, "w") as file:
        file.write(json.dumps(content, indent=1))
        file.flush()
        os.fsync(file.fileno())


def prune(out: Path, keep_last: int) -> None:
    """Remove checkpoints to resume from, except the newest `keep_last` whole ones.

    The newest whole checkpoint always stays. A kill while one is removed leaves an incomplete folder, never a damaged
    checkpoint, because its record is removed first.
    """
    parent = out / RESUME
    kept = {state.folder for state in resumable_states(out)[: max(1, keep_last)]}
    for folder in sorted(parent.glob("step_*")):
        if folder not in kept and folder.suffix not in UNFINISHED:
            remove(folder)


def clear_unfinished(out: Path) -> None:
    """Remove what killed saves left; no save may be in progress."""
    for parent in (out / RESUME, out / KEPT, out / WEIGHTS, out):
        pattern = f"{CHECKPOINT}.*" if parent == out else "step_*.*"
        for folder in sorted(parent.glob(pattern)):
            whole = folder.with_suffix("")
            # The kill came between two renames: this folder was to be replaced.
            if folder.suffix == OLD_SUFFIX and not whole.exists():
                folder.rename(whole)
            elif folder.suffix in UNFINISHED:
                remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint, its record first."""
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
