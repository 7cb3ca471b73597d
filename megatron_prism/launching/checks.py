"""What would fail in the queue is refused before submission."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_prism.errors import ConfigError
from megatron_prism.launching.executor import Executor, Resources
from megatron_prism.launching.nemo import REPLACED, command
from megatron_prism.launching.partitions import check_partitions
from megatron_prism.launching.slurm import refusal, without_overrides
from megatron_prism.launching.task import Task
from megatron_prism.platform.folder_checks import file_system, is_shared

# Keys of text in the header of a batch script.
HEADER = ("account", "partition", "qos", "constraint", "comment", "mem", "time")
OWN = {
    *(
        "account",
        "partition",
        "time",
        "nodes",
        "ntasks",
        "ntasks_per_node",
        "cpus_per_task",
        "signal",
        "array",
    ),
    *(
        "job_name",
        "output",
        "error",
        "dependency",
        "requeue",
        "no_requeue",
        "open_mode",
        "kill_on_invalid_dep",
    ),
}
# The lines of a header in which two jobs of one kind do not differ.
OPTION = re.compile("#SBATCH(?! --(job-name|output|comment)=)")


def check_submission(recipe: str, tasks: Sequence[Task], executor: Executor, run_dir: Path) -> None:
    """Raises:
    ConfigError: one line that names the file or folder and the remedy.
    """
    for what, name in (("recipe", recipe), *(("stage", task.name) for task in tasks)):
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(
                f"{what} '{name}': the names of jobs and of their files are made of its name, which may have only "
                "letters, digits, '_', '-' and '.'; rename it"
            )
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
    path = str(run_dir.resolve())
    if re.search(r"[^\w./+=:@,-]", path):
        raise ConfigError(
            f"--run-dir {run_dir}: nemo-run's scripts cannot hold a path with blanks, quotes or other special "
            "characters; choose another folder"
        )
    if REPLACED in path:
        raise ConfigError(
            f"--run-dir {run_dir}: nemo-run replaces {REPLACED} in its scripts; choose another folder"
        )
    for task in tasks:
        _check_script(task, executor, path)
    check_partitions(tasks, executor.file)


def _check_script(task: Task, executor: Executor, path: str) -> None:
    """What nemo-run's script cannot hold, or would change."""
    r = task.resources
    for key in r.env:
        if key != key.upper():
            raise ConfigError(
                f"{executor.file}: env.{key}: nemo-run writes names in capitals, so a job would get {key.upper()}; "
                "set this variable in `setup` (setup: export NAME=VALUE)"
            )
    _check_header(r, executor)
    program = command(task)[0]
    if "python" not in program:
        raise ConfigError(
            f"{executor.file}: python={program}: nemo-run starts a module only with a program that has 'python' in "
            "its path; give it such a name with a link"
        )
    if not r.container_image:
        for key, text in {"python": program, "setup": r.setup, "packaging": str(task.code or "")}.items():
            if REPLACED in text:
                raise ConfigError(
                    f"{executor.file}: {key}: nemo-run replaces {REPLACED} in its scripts by the folder of the job; "
                    "use another path, for example a link"
                )
        return
    if re.search("[:,]", path):
        raise ConfigError(
            f"--run-dir {path}: a container cannot mount a path with ':' or ','; choose another folder"
        )
    if "--container-image" not in _help_of_srun():
        raise ConfigError(
            f"{executor.file}: container_image={r.container_image}: srun has no --container-image here, because pyxis "
            "is not installed; leave container_image out, or ask the cluster's admin for pyxis"
        )


def _check_header(r: Resources, executor: Executor) -> None:
    """Values that would break the header of a batch script, and options that launching writes itself."""
    for key, value in r.additional_parameters.items():
        where = f"{executor.file}: additional_parameters.{key}"
        if str(key).replace("-", "_") in OWN:
            raise ConfigError(
                f"{where}: this option follows from other keys or is decided here; leave it out"
            )
        if value is None or value is False:
            raise ConfigError(f"{where}={value}: give it a value, or true for an option without one")
    values = {key: getattr(r, key) for key in HEADER} | r.additional_parameters
    for key, value in values.items():
        if "\n" in f"{key}{value}".rstrip("\n"):
            raise ConfigError(
                f"{executor.file}: {key}={str(value)!r}: a line break ends the header of a batch script, and sbatch "
                "would not read the options after it; write it in one line"
            )


def _help_of_srun() -> str:
    try:
        return subprocess.run(["srun", "--help"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def check_scripts(scripts: Mapping[str, str], executor: Executor) -> None:
    """Ask `sbatch` about each kind of job before the first is sent, so that no job runs of a submission that fails.

    Args:
        scripts: the batch scripts by name.

    Raises:
        ConfigError: in the words of `sbatch`, for what will never run.
    """
    asked = set()
    with without_overrides():
        for name, script in scripts.items():
            lines = [line for line in script.splitlines() if OPTION.match(line)]
            header = "\n".join(["#!/bin/sh", *lines, ""])
            if header not in asked and (words := refusal(header)):
                raise ConfigError(f"{executor.file}: Slurm would refuse the job of stage '{name}': {words}")
            asked.add(header)


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
