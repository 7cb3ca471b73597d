"""Wait for the jobs of a submission on Slurm, and tell what happens to them."""

from __future__ import annotations

import time
from collections.abc import Callable

from megatron_prism.errors import ServerError, StageFailed
from megatron_prism.launching.logs import Follower, stage_logs
from megatron_prism.launching.record import Submission, with_dependants
from megatron_prism.launching.slurm import UNKNOWN, SlurmJob, cancel_jobs, slurm_jobs
from megatron_prism.launching.submission import failure_of

POLL_SECONDS = 2.0
# A controller that restarts does not answer for a while.
PATIENCE_SECONDS = 600.0


def wait_for_jobs(
    submission: Submission, tell: Callable[[str, str], None], show: Callable[[str, str], None]
) -> None:
    """Return when all jobs have succeeded.

    Args:
        tell: receives a stage's name and its new state.
        show: receives a stage's name and a new line of its log.

    Raises:
        StageFailed: when all jobs have ended, names the first that failed. Those that wait for it are cancelled.
        ServerError: if Slurm does not answer for ten minutes.
    """
    states: dict[str, str] = {}
    followers = {name: Follower() for name in submission.tasks}
    first, ended, answered = "", "", time.monotonic()
    while True:
        try:
            found = slurm_jobs([task.job for task in submission.tasks.values()])
            answered = time.monotonic()
        except ServerError:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
            time.sleep(POLL_SECONDS)
            continue
        jobs = {name: found[task.job] for name, task in submission.tasks.items()}
        for name, job in jobs.items():
            for line in followers[name].new_lines(stage_logs(submission.tasks[name])):
                show(name, line)
            if states.get(name) != job.state:
                states[name] = job.state
                tell(name, job.state)
        if not first and (first := next((name for name, job in jobs.items() if job.has_failed), "")):
            ended = jobs[first].state
        if first:
            _cancel_dependants(submission, jobs)
        if all(job.has_ended or job.state == UNKNOWN for job in jobs.values()):
            if first:
                raise StageFailed(failure_of(submission, first, ended))
            return
        time.sleep(POLL_SECONDS)


def _cancel_dependants(submission: Submission, jobs: dict[str, SlurmJob]) -> None:
    """Remove the jobs that wait for one that failed. Slurm does it, too, where `--kill-on-invalid-dep` is honoured."""
    failed = [name for name, job in jobs.items() if job.has_failed]
    doomed = [
        submission.tasks[name].job
        for name in with_dependants(failed, submission.tasks)
        if not jobs[name].has_ended and jobs[name].state != UNKNOWN
    ]
    if doomed:
        cancel_jobs(doomed)
