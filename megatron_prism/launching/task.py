"""A stage, or an array of stages, ready for submission."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_prism.launching.executor import Resources
from megatron_prism.launching.placement import Placement


@dataclass(frozen=True)
class Task:
    """A stage, ready for submission.

    Attributes:
        file: its job file.
        after: names of the tasks of this submission that must have succeeded.
        waits_for: numbers of jobs of earlier submissions that must have succeeded, by the names of their stages.
        code: folder with a copy of the code; None if the nodes run what is installed there.
        members: of an array (see `array.py`), whose `file` lists theirs; empty for a single stage.
    """

    name: str
    file: Path
    placement: Placement
    resources: Resources
    after: tuple[str, ...] = ()
    code: Path | None = None
    members: tuple[Task, ...] = ()
    waits_for: tuple[tuple[str, str], ...] = ()
