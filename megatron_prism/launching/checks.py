"""What would fail in the queue is refused before submission."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_prism.errors import ConfigError
from megatron_prism.launching.executor import Executor
from megatron_prism.launching.task import Task
from megatron_prism.platform.folder_checks import file_system, is_shared


def check_submission(tasks: Sequence[Task], executor: Executor, run_dir: Path) -> None:
    """Raises:
    ConfigError: one line that names the file or folder and the remedy.
    """
    if executor.kind == "slurm":
        _check_slurm(tasks, executor, run_dir)
    several = [task for task in tasks if task.placement.nodes > 1]
    if several:
        check_shared(run_dir, executor, several[0])


def _check_slurm(tasks: Sequence[Task], executor: Executor, run_dir: Path) -> None:
    if shutil.which("sbatch") is None:
        raise ConfigError(
            f"{executor.file}: sbatch is not on PATH; submit on a login node of the cluster, or load its Slurm module"
        )
    if re.search(r"[^\w./+=:@,-]", str(run_dir.resolve())):
        raise ConfigError(
            f"--run-dir {run_dir}: nemo-run's scripts cannot hold a path with blanks, quotes or other special "
            "characters; choose another folder"
        )
    for task in tasks:
        for key in task.resources.env:
            if key != key.upper():
                raise ConfigError(
                    f"{executor.file}: env.{key}: nemo-run writes names in capitals, so a job would get {key.upper()}; "
                    "set this variable in `setup` (setup: export NAME=VALUE)"
                )


def check_shared(run_dir: Path, executor: Executor, task: Task) -> None:
    """Refuse a run folder on a file system of this machine only, for a stage on several nodes."""
    if executor.shared_run_dir:
        return
    kind = file_system(run_dir)
    if not is_shared(kind):
        raise ConfigError(
            f"--run-dir {run_dir}: its file system ({kind}) is not one of those that nodes share, and stage "
            f"'{task.name}' runs on {task.placement.nodes} nodes; choose a shared folder, or write "
            f"shared_run_dir: true into {executor.file} if all nodes see this one"
        )
