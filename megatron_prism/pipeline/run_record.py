"""The record of a run that is not finished: what makes the folder, and the layouts that worked on it so far.

It stands in the partial folder as `resume/run.json`, and its contents move to the receipt when the folder is complete.
From it a later run can tell whether the folder is a part of its own work.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.artifact import RECEIPT, RESUME, write_json
from megatron_prism.pipeline.json_text import read_object

RUN_RECORD = f"{RESUME}/run.json"


@dataclass
class RunRecord:
    """What a folder is made by.

    Attributes:
        lineage: see `Stage.lineage`; empty for a stage that no longer run can continue.
        attempts: start time, number of processes and tuning fields of each process group that worked on it.
        continues: fingerprint of the shorter run whose state this one began from; empty if there is none.
        continues_from: folder of that run.
    """

    kind: str
    version: int
    fingerprint: str
    lineage: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    continues: str = ""
    continues_from: str = ""

    def save(self, folder: Path) -> None:
        (folder / RUN_RECORD).parent.mkdir(exist_ok=True)
        write_json(folder / RUN_RECORD, asdict(self))


def read_run_record(folder: Path) -> RunRecord | None:
    """The record of a partial or finished folder; None if it has none that can be read."""
    for name in (RECEIPT, RUN_RECORD):
        if not (folder / name).is_file():
            continue
        try:
            raw = read_object(folder / name, ArtifactError, keep_half_pairs=True)
            known = {key: raw[key] for key in RunRecord.__dataclass_fields__ if key in raw}
            return RunRecord(**({"version": 0} | known))
        except (ArtifactError, TypeError):
            return None
    return None
