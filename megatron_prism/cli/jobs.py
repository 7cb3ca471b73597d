"""`prism jobs`, `prism logs STAGE` and `prism cancel [STAGE]`: what was submitted from a run folder."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_prism.cli.output import JsonOption, check_json_target, show_line, show_table, write_result
from megatron_prism.errors import ConfigError, ServerError, suggest

if TYPE_CHECKING:
    from megatron_prism.launching.record import Submission, SubmittedTask

RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        metavar="DIR",
        help="The run folder that was submitted from; default: the one in runs/ with the last submission.",
    ),
]
POLL_SECONDS = 1.0


def jobs(run_dir: RunDir = None, json_file: JsonOption = None) -> None:
    """Show the jobs of a run folder: the last submission of every stage."""
    check_json_target(json_file)
    from megatron_prism.launching.logs import log_files

    rows = []
    run_dir = run_dir or _last_run_dir()
    tasks = _tasks(run_dir)
    for name, (state, elapsed, nodes, reason) in _states(tasks).items():
        submission, task = tasks[name]
        files = log_files(task)
        rows.append(
            {
                "stage": name,
                "submission": str(submission.number),
                "job": task.job,
                "state": state,
                "elapsed": elapsed,
                "nodes": nodes or str(task.nodes),
                "waits for": reason,
                "log": str(files[-1]) if files else "",
            }
        )
    show_table(json_file, f"jobs of {run_dir}", list(rows[0]), [list(row.values()) for row in rows])
    write_result(json_file, rows)


def logs(
    stage: Annotated[str, typer.Argument(metavar="STAGE")],
    run_dir: RunDir = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show new lines until the job has ended.")] = False,
    lines: Annotated[int, typer.Option("--lines", metavar="N", help="How many of the last lines.")] = 40,
    json_file: JsonOption = None,
) -> None:
    """Show the log of a stage's job."""
    check_json_target(json_file)
    if lines < 1:
        raise ConfigError(f"--lines {lines}: must be at least 1")
    from megatron_prism.launching.logs import Follower, log_files, tail

    tasks = _tasks(run_dir)
    _, task = tasks[_known(stage, tasks)]
    files = log_files(task)
    shown = tail(files, lines)
    if not files and not follow:
        show_line(json_file, f"stage '{stage}' has written nothing yet")
    for line in shown:
        show_line(json_file, line)
    write_result(json_file, {"stage": stage, "files": [str(file) for file in files], "lines": shown})
    if not follow:
        return
    follower = Follower()
    list(follower.new_lines(files))
    while True:
        ended = _has_ended(stage, tasks)
        for line in follower.new_lines(log_files(task)):
            show_line(json_file, line)
        if ended:
            return
        time.sleep(POLL_SECONDS)


def cancel(
    run_dir: RunDir = None,
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]")] = None,
    json_file: JsonOption = None,
) -> None:
    """Cancel the job of a stage and those that wait for it, or all jobs of the run folder."""
    check_json_target(json_file)
    from megatron_prism.launching.record import with_dependants
    from megatron_prism.launching.slurm import cancel_jobs, slurm_jobs

    tasks = _tasks(run_dir)
    chosen = (
        set(tasks)
        if stage is None
        else with_dependants([_known(stage, tasks)], {name: task for name, (_, task) in tasks.items()})
    )
    numbers = {name: tasks[name][1].job for name in chosen if tasks[name][1].job}
    states = slurm_jobs(list(numbers.values())) if numbers else {}
    alive = {name: number for name, number in numbers.items() if not states[number].has_ended}
    alive = {name: number for name, number in alive.items() if states[number].state != "UNKNOWN"}
    if alive:
        cancel_jobs(list(alive.values()))
    names = [name for name in tasks if name in alive]
    show_line(json_file, f"cancelled: {', '.join(names)}" if names else "no job to cancel")
    write_result(json_file, {"cancelled": {name: alive[name] for name in names}})


def _last_run_dir() -> Path:
    """The run folder in runs/ with the last submission."""
    from megatron_prism.launching.record import SUBMISSIONS

    files = list(Path("runs").glob(f"*/{SUBMISSIONS}/*.json"))
    if not files:
        raise ConfigError("runs: no folder in it has a submission; name the run folder with --run-dir DIR")
    newest = max(files, key=lambda file: file.stat().st_mtime)
    return newest.parents[len(Path(SUBMISSIONS).parts)]


def _tasks(run_dir: Path | None) -> dict[str, tuple[Submission, SubmittedTask]]:
    """The last submission of every stage by its name, and earlier ones that Slurm still has as STAGE@SUBMISSION."""
    from megatron_prism.launching.in_queue import find_lost_numbers, queued_tasks
    from megatron_prism.launching.record import latest_tasks, read_submissions

    run_dir = run_dir or _last_run_dir()
    # Without an answer the records are still worth showing; whoever needs a state asks again.
    with suppress(ServerError):
        find_lost_numbers(run_dir)
    found = latest_tasks(run_dir)
    with suppress(ServerError):
        queued = {(each.name, each.submission) for each in queued_tasks(run_dir)}
        earlier = [
            (submission, name, task)
            for submission in read_submissions(run_dir)
            for name, task in submission.tasks.items()
            if submission.number != found[name][0].number and (name, submission.number) in queued
        ]
        labels = {(name, submission.number): f"{name}@{submission.number}" for submission, name, _ in earlier}
        for submission, name, task in earlier:
            waits = [label for other in task.after if (label := labels.get((other, submission.number)))]
            found[labels[name, submission.number]] = (submission, replace(task, after=waits))
    if not found:
        raise ConfigError(
            f"--run-dir {run_dir}: nothing was submitted from this folder with `prism run --executor`"
        )
    return found


def _known(stage: str, tasks: dict[str, tuple[Submission, SubmittedTask]]) -> str:
    if stage not in tasks:
        raise ConfigError(f"stage '{stage}' was not submitted{suggest(stage, tasks)}")
    return stage


def _states(
    tasks: dict[str, tuple[Submission, SubmittedTask]],
) -> dict[str, tuple[str, str, str, str]]:
    """State, time so far, nodes, and reason for waiting, by stage."""
    from megatron_prism.launching.slurm import slurm_jobs

    found = slurm_jobs([task.job for _, task in tasks.values()])
    result = {}
    for name, (_, task) in tasks.items():
        if task.job:
            job = found[task.job]
            result[name] = (job.state.lower(), job.elapsed, job.nodes, job.reason)
        else:
            result[name] = (task.state or "not submitted", "", "", "")
    return result


def _has_ended(stage: str, tasks: dict[str, tuple[Submission, SubmittedTask]]) -> bool:
    from megatron_prism.launching.slurm import slurm_jobs

    number = tasks[stage][1].job
    if not number:
        return True
    job = slurm_jobs([number])[number]
    return job.has_ended or job.state == "UNKNOWN"
