"""Submit the tasks of a recipe and, if wanted, wait for them.

Slurm gets all tasks at once, each with its dependencies; a task whose dependency fails is removed by Slurm. The other
executors of nemo-run go on after a failure, so their tasks are started here, one after the other.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_prism.errors import ServerError, StageFailed
from megatron_prism.launching.array import with_arrays, write_array
from megatron_prism.launching.checks import check_scripts
from megatron_prism.launching.containers import check_daemon, watcher
from megatron_prism.launching.executor import Executor
from megatron_prism.launching.in_queue import (
    HOME,
    SLURM,
    QueuedTask,
    cancel_what_waits_for_ever,
    log_pattern,
)
from megatron_prism.launching.job_file import JobFile, write_job
from megatron_prism.launching.nemo import add_tasks, command, experiment, import_nemo_run
from megatron_prism.launching.record import Submission, SubmittedTask, next_number
from megatron_prism.launching.slurm import without_overrides
from megatron_prism.launching.task import Task

LOCAL, DOCKER = "local", "docker"
# The files in a job's folder to which nemo-run writes what a task prints; SkyPilot and Kubeflow keep their own.
LOGS = {LOCAL: "combined.log", DOCKER: "log_*.out"}
RUNNING, DONE, FAILED, NOT_STARTED = "running", "done", "failed", "not started"


@dataclass(frozen=True)
class Plan:
    """The tasks of a submission, and where their files are.

    Attributes:
        joined: stages that are missing, too, and that jobs of earlier submissions make.
    """

    recipe: str
    run_dir: Path
    executor: Executor
    tasks: Sequence[Task]
    joined: Mapping[str, QueuedTask] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return next_number(self.run_dir)

    @property
    def entries(self) -> list[Task]:
        """What the executor gets: on Slurm, some tasks share an array."""
        return with_arrays(self.tasks) if self.executor.kind == SLURM else list(self.tasks)

    def with_joined(self, submission: Submission | None) -> Submission:
        """A submission together with the jobs of earlier ones that it needs, which are waited for in the same way."""
        made = submission or Submission(0, self.recipe, self.executor.kind, self.executor.file, "")
        earlier = {name: each.task for name, each in self.joined.items()}
        return replace(made, tasks=earlier | made.tasks)


def scripts(plan: Plan) -> dict[str, str]:
    """For a dry run: what each task gives to its executor, by name: Slurm's script, or the command.

    Nothing is written into the run folder: nemo-run works in a temporary folder, whose path in the scripts is replaced
    by the one that a live run would use.
    """
    if plan.executor.kind == LOCAL:
        return {task.name: " ".join(command(task)) for task in plan.tasks}
    home = plan.run_dir.resolve() / HOME
    with tempfile.TemporaryDirectory() as made_here:
        temporary = Path(made_here).resolve() / HOME.rpartition("/")[2]
        with experiment(plan.recipe, plan.number, temporary) as made:
            add_tasks(made, plan.entries, plan.executor, home=temporary, title=plan.recipe)
            made.dryrun(log=False, delete_exp_dir=False)
            shown = {job.id: str(job._dryrun_info) for job in made.jobs}
        return {name: text.replace(str(temporary), str(home)) for name, text in shown.items()}


def submit_to_slurm(plan: Plan, jobs: Mapping[str, JobFile]) -> Submission:
    """Write the job files and hand all tasks to Slurm.

    Raises:
        ServerError: with Slurm's words, if it refuses a job; those submitted before it are cancelled.
    """
    # nemo-run keeps the first home that it sees, which must not be the temporary one of `scripts`.
    import_nemo_run(plan.run_dir.resolve() / HOME)
    check_scripts(scripts(plan), plan.executor)
    cancel_what_waits_for_ever(plan.run_dir)
    problem: BaseException | None = None
    with open_experiment(plan, jobs) as (made, submission):
        try:
            with without_overrides():
                made.run(detach=True)
        except BaseException as refused:
            problem = refused
    if problem is None:
        return submission
    left = _take_back(submission)
    if not isinstance(problem, Exception):
        raise problem
    raise ServerError(f"sbatch refused a job: {slurms_words(problem)}{left}") from None


@contextmanager
def open_experiment(plan: Plan, jobs: Mapping[str, JobFile]) -> Iterator[tuple[Any, Submission]]:
    """The experiment of a submission, with its tasks and files, for a caller who runs it in the block.

    The jobs are recorded when the block ends, and the states of tasks that Slurm does not know after nemo-run has
    waited for them.
    """
    submission = _record(plan, jobs)
    for job in jobs.values():
        write_job(job, plan.run_dir)
    entries = {task.name: task for task in plan.entries}
    for entry in entries.values():
        if entry.members:
            write_array(entry)
    home = plan.run_dir.resolve() / HOME
    with experiment(plan.recipe, submission.number, home) as made:
        add_tasks(made, list(entries.values()), plan.executor, home=home, title=plan.recipe)
        try:
            yield made, submission
        finally:
            for job in made.jobs:
                _note(submission, entries[job.id], job)
            submission.save(plan.run_dir)
    if plan.executor.kind != SLURM:
        from torchx.specs import AppState

        for job in made.jobs:
            submission.tasks[job.id].state = DONE if job.state == AppState.SUCCEEDED else FAILED
        submission.save(plan.run_dir)


def _note(submission: Submission, entry: Task, job: Any) -> None:
    """Record the number of nemo-run's `job` on Slurm, and where its log is."""
    folder, title = Path(job.executor.job_dir), submission.recipe
    if submission.kind != SLURM:
        if submission.kind in LOGS:
            submission.tasks[entry.name].logs = f"{glob.escape(str(folder))}/**/{LOGS[submission.kind]}"
        return
    number = job.handle.rpartition("/")[2] if job.handle else ""
    for member in entry.members or (entry,):
        task = submission.tasks[member.name]
        task.job = task.number_in(number)
        task.logs = log_pattern(folder, title, job.id, task.job) if number else ""


def run_one_by_one(plan: Plan, jobs: Mapping[str, JobFile], tell: Callable[[str, str], None]) -> Submission:
    """Run the tasks in order, each as an experiment of its own; a task whose dependency failed is not started.

    Args:
        tell: receives a task's name and its state.

    Raises:
        StageFailed: when all tasks that could run have ended, names the first that failed and its log.
        ServerError: if the executor's service does not answer, or cannot start a task.
    """
    if plan.executor.kind == DOCKER:
        check_daemon()
    submission = _record(plan, jobs)
    failed = ""
    for task in plan.tasks:
        entry = submission.tasks[task.name]
        if any(submission.tasks[name].state != DONE for name in task.after):
            tell(task.name, NOT_STARTED)
            continue
        write_job(jobs[task.name], plan.run_dir)
        entry.state = RUNNING
        submission.save(plan.run_dir)
        tell(task.name, RUNNING)
        entry.state = DONE if _run_here(plan, task, submission) else FAILED
        submission.save(plan.run_dir)
        tell(task.name, entry.state)
        failed = failed or (task.name if entry.state == FAILED else "")
    if failed:
        raise StageFailed(failure_of(submission, failed))
    return submission


def _run_here(plan: Plan, task: Task, submission: Submission) -> bool:
    home = plan.run_dir.resolve() / HOME
    title = f"{plan.recipe}-{task.name}"
    try:
        # nemo-run starts the task and waits for its end where the experiment's block ends.
        with watcher() as watch, experiment(title, submission.number, home) as made:
            add_tasks(made, [replace(task, after=())], plan.executor, home=home, title=title)
            if plan.executor.kind in LOGS:
                logs = f"{glob.escape(str(made._exp_dir))}/**/{LOGS[plan.executor.kind]}"
                submission.tasks[task.name].logs = logs
            submission.save(plan.run_dir)
            if plan.executor.kind == DOCKER:
                watch(made)
            made.run(detach=False)
    except Exception as problem:
        # Whatever the libraries of the executor raise: no image, no time, no permission.
        raise ServerError(f"stage '{task.name}': {plan.executor.kind} did not run it: {problem}") from problem
    from torchx.specs import AppState

    # nemo-run returns without an error when a task has failed, and its states are final only now.
    return all(job.state == AppState.SUCCEEDED for job in made.jobs)


def _record(plan: Plan, jobs: Mapping[str, JobFile]) -> Submission:
    scripts = {
        member.name: (entry.name, place if entry.members else -1)
        for entry in plan.entries
        for place, member in enumerate(entry.members or (entry,))
    }
    tasks = {
        task.name: SubmittedTask(
            job="",
            logs="",
            after=[*task.after, *(name for name, _ in task.waits_for)],
            nodes=task.placement.nodes,
            processes=task.placement.processes,
            state="" if plan.executor.kind == SLURM else NOT_STARTED,
            folder=jobs[task.name].folder,
            entry=scripts[task.name][0],
            place=scripts[task.name][1],
        )
        for task in plan.tasks
    }
    now = datetime.now(UTC).isoformat(timespec="seconds")
    submission = Submission(0, plan.recipe, plan.executor.kind, plan.executor.file, now, tasks)
    submission.claim_number(plan.run_dir)
    return submission


def _take_back(submission: Submission) -> str:
    """Cancel the jobs that were submitted; what to add to the message if that fails."""
    from megatron_prism.launching.slurm import cancel_jobs

    numbers = [task.job for task in submission.tasks.values() if task.job]
    try:
        if numbers:
            cancel_jobs(numbers)
    except ServerError as problem:
        return f"; jobs {', '.join(numbers)} were submitted before it and could not be cancelled ({problem})"
    return ""


def slurms_words(problem: Any) -> str:
    """What sbatch printed, from the error of the library that called it."""
    result = getattr(problem, "result", None)
    text = getattr(result, "stderr", "") or str(problem)
    lines = [line.removeprefix("sbatch: error: ") for line in text.splitlines() if line.strip()]
    return "; ".join(lines) or type(problem).__name__


def failure_of(submission: Submission, name: str, state: str = "FAILED") -> str:
    """One line about a failed task: how it ended in Slurm's words, what it said, and where its log is."""
    from megatron_prism.launching.logs import last_error, log_files

    files = log_files(submission.tasks[name])
    said = last_error(files)
    where = f"; its log is {files[-1]}" if files else ""
    how = "" if state == "FAILED" else f" ({state.lower().replace('_', ' ')})"
    return f"stage '{name}' failed{how}{f': {said}' if said else ''}{where}"
