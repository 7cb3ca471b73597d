"""Wait for the jobs of a submission on Slurm, and tell what happens to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from megatron_prism.errors import ServerError, StageFailed
from megatron_prism.launching.logs import Follower, stage_logs
from megatron_prism.launching.record import Submission, with_dependants
from megatron_prism.launching.slurm import UNKNOWN, SlurmJob, cancel_jobs, slurm_jobs
from megatron_prism.launching.submission import failure_of

# A cluster's controller serves everybody, so it is asked less often when the first minute has shown no mistake.
POLL_SECONDS, PATIENT_POLL_SECONDS, FIRST_SECONDS = 2.0, 10.0, 60.0
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
    began, jobs = answered, dict.fromkeys(submission.tasks, SlurmJob(""))
    while True:
        try:
            open_tasks = {
                name: task
                for name, task in submission.tasks.items()
                if not (jobs[name].has_ended or jobs[name].state == UNKNOWN)
            }
            found = slurm_jobs([task.job for task in open_tasks.values()])
            answered = time.monotonic()
        except ServerError:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
            time.sleep(POLL_SECONDS)
            continue
        jobs |= {name: found[task.job] for name, task in open_tasks.items()}
        for name, job in jobs.items():
            for line in followers[name].new_lines(stage_logs(submission.tasks[name])):
                show(name, line)
            if states.get(name) != job.state:
                states[name] = job.state
                tell(name, job.state)
        if not first and (first := next((name for name, job in jobs.items() if job.has_failed), "")):
            ended = jobs[first].state
        if first:
            # Without an answer, the next round tries again.
            with suppress(ServerError):
                _cancel_dependants(submission, jobs)
        if all(job.has_ended or job.state == UNKNOWN for job in jobs.values()):
            if first:
                raise StageFailed(failure_of(submission, first, ended))
            return
        time.sleep(POLL_SECONDS if time.monotonic() - began < FIRST_SECONDS else PATIENT_POLL_SECONDS)


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
