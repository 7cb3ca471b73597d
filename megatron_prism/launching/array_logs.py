"""Where the tasks of an array write: nemo-run names their logs by a number that is not known at submission.

Imported only where nemo-run is, which takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_run.core.execution.slurm import SlurmJobDetails


@dataclass(kw_only=True)
class ArrayJobDetails(SlurmJobDetails):
    """Logs named by the number of the array and of its task, as `squeue` shows them."""

    @property
    def srun_stdout(self) -> Path:
        assert self.folder
        task = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_${SLURM_RESTART_COUNT:-0}"
        return Path(self.folder) / f"log-{self.job_name}_{task}.out"
