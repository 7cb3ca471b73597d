"""A run of more steps goes on from the newest state of the same run with fewer steps.

Two runs are the same up to their length if their stages give the same `lineage`. The longer run takes over a partial
folder of the shorter one by renaming it. A finished artifact stays where it is; the longer run only reads its state.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.pipeline.artifact import PARTIAL_SUFFIX, partial_path
from megatron_prism.pipeline.run_record import RunRecord, read_run_record
from megatron_prism.pipeline.stage import Stage


@dataclass(frozen=True)
class Shorter:
    """A shorter run of the same lineage, and the number of steps whose state its folder holds."""

    folder: Path
    record: RunRecord
    progress: int

    @property
    def final(self) -> Path:
        """The folder that the run has, or will have, when it is complete."""
        return self.folder.with_name(self.folder.name.removesuffix(PARTIAL_SUFFIX))

    @property
    def is_partial(self) -> bool:
        return self.folder.name.endswith(PARTIAL_SUFFIX)


def shorter_run(stage: Stage, lineage: str | None, final: Path) -> Shorter | None:
    """The run that got furthest among those next to `final` that `stage` can continue; None if there is none.

    Args:
        lineage: of `stage` with its inputs.
        final: the folder of the new artifact.
    """
    found: list[Shorter] = []
    for folder in sorted(final.parent.glob(f"{stage.kind}-*")) if lineage else ():
        if not folder.is_dir() or folder in (final, partial_path(final)):
            continue
        record = read_run_record(folder)
        if record is not None and record.lineage == lineage and (progress := stage.progress(folder)):
            found.append(Shorter(folder, record, progress))
    return max(found, key=lambda each: (each.progress, not each.is_partial), default=None)


def take_over(shorter: Shorter, final: Path) -> None:
    """Make a shorter run's partial folder the partial folder of `final`."""
    os.rename(shorter.folder, partial_path(final))
