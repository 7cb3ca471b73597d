"""What Slurm still has of earlier submissions of a run folder: the same stage is not submitted twice.

A record lacks the numbers of jobs whose `prism run` was killed between `sbatch` and the end of the submission. Slurm
knows the path of every job's script, which names the run folder, the submission and the stage.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.errors import ConfigError
from megatron_prism.launching.job_file import LAUNCH, JobFile
from megatron_prism.launching.record import Submission, SubmittedTask, read_submissions
from megatron_prism.launching.slurm import SlurmJob, cancel_jobs, queue, queued_scripts
from megatron_prism.platform.console import get_logger

# nemo-run replaces "/nemo_run" in a script by the folder of the job.
HOME = f"{LAUNCH}/nemo"
SLURM = "slurm"

log = get_logger(__name__)


@dataclass(frozen=True)
class QueuedTask:
    """A stage whose job is in the queue or runs."""

    name: str
    submission: int
    task: SubmittedTask
    job: SlurmJob

    def __str__(self) -> str:
        return f"job {self.task.job} of submission {self.submission} ({self.job.state.lower()})"


def log_pattern(folder: Path, title: str, entry: str, number: str) -> str:
    """The pattern of a job's log files on Slurm; `folder` is that of its script's name."""
    return f"{glob.escape(str(folder))}/*{glob.escape(f'{title}.{entry}_{number}')}[._]*"


def find_lost_numbers(run_dir: Path) -> None:
    """Complete the records of submissions that were interrupted, for jobs that Slurm still has.

    Raises:
        ServerError: if Slurm does not answer.
    """
    run_dir = run_dir.resolve()
    unfinished = [
        each
        for each in read_submissions(run_dir)
        if each.kind == SLURM and any(task.entry and not task.job for task in each.tasks.values())
    ]
    if not unfinished:
        return
    scripts = queued_scripts()
    for submission in unfinished:
        if found := _adopt(submission, run_dir, scripts):
            submission.save(run_dir)
            log.warning(
                "submission %d was interrupted; Slurm has its jobs of %s", submission.number, ", ".join(found)
            )


def _adopt(submission: Submission, run_dir: Path, scripts: Mapping[str, str]) -> list[str]:
    """Enter the numbers of the jobs whose scripts are those of this submission."""
    title = submission.recipe
    folder = run_dir / HOME / "experiments" / title / f"{title}_{submission.number:04d}"
    found = []
    for name, task in submission.tasks.items():
        number = scripts.get(str(folder / f"{task.entry}_sbatch.sh"))
        if number and task.entry and not task.job:
            task.job = task.number_in(number)
            task.logs = log_pattern(folder / task.entry, title, task.entry, task.job)
            found.append(f"'{name}' ({task.job})")
    return found


def queued_tasks(run_dir: Path) -> list[QueuedTask]:
    """The stages of all submissions of a run folder whose jobs run or can still run, oldest first.

    Raises:
        ServerError: if Slurm does not answer.
    """
    find_lost_numbers(run_dir)
    submitted = [
        (each, name, task)
        for each in read_submissions(run_dir)
        for name, task in each.tasks.items()
        if each.kind == SLURM and task.job
    ]
    jobs = queue() if submitted else {}
    return [
        QueuedTask(name, each.number, task, jobs[task.job])
        for each, name, task in submitted
        if task.job in jobs and jobs[task.job].can_go_on
    ]


def joined_tasks(jobs: Mapping[str, JobFile], run_dir: Path, rerun: set[str]) -> dict[str, QueuedTask]:
    """Of the stages to submit, by name, those whose artifact a job of the queue makes.

    Raises:
        ConfigError: for a stage of `rerun` among them.
        ServerError: if Slurm does not answer.
    """
    queued = {each.task.folder: each for each in queued_tasks(run_dir) if each.task.folder}
    found = {name: queued[job.folder] for name, job in jobs.items() if job.folder in queued}
    for name in rerun:
        if name in found:
            raise ConfigError(
                f"stage '{name}' cannot start anew: {found[name]} makes it; wait for it, or end it with "
                f"`prism cancel {found[name].name} --run-dir {run_dir}`"
            )
    return found


def cancel_what_waits_for_ever(run_dir: Path) -> None:
    """Remove jobs whose dependency has failed and that Slurm has kept, before their stages are submitted again."""
    tasks = [task for each in read_submissions(run_dir) if each.kind == SLURM for task in each.tasks.values()]
    jobs = queue() if any(task.job for task in tasks) else {}
    doomed = [
        task.job for task in tasks if (job := jobs.get(task.job)) and not job.has_ended and not job.can_go_on
    ]
    if doomed:
        cancel_jobs(doomed)
