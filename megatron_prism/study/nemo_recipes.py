"""Recipes for nemo-run's own Python API and command line.

- `recipe_experiment` is a `run.Experiment` with a task for each stage that is not done, as by `prism run --executor`;
- `stage_script` is one stage as a `run.Script`: the command of its job, on any number of nodes;
- `stage_partial` is one stage and what it needs as a `run.Partial`, in one task on one node.

nemo-run ends with exit code 0 when a task has failed. `recipe_experiment` raises an error then, and `require_success`
does it for an experiment of your own. nemo-run takes seconds to import, so it is imported only when it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from megatron_prism.errors import USER_ERROR_EXIT, ConfigError, PrismError, StageFailed
from megatron_prism.launching.job_file import job_of, write_job
from megatron_prism.launching.nemo import MODULE
from megatron_prism.launching.packaging import copy_of_the_code
from megatron_prism.launching.preparation import prepare
from megatron_prism.launching.record import Submission
from megatron_prism.launching.submission import DONE, SLURM, failure_of, open_experiment
from megatron_prism.launching.waiting import wait_for_jobs
from megatron_prism.pipeline.config import parse_override
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.node import locate
from megatron_prism.platform.console import setup_logging
from megatron_prism.study.registry import load_recipe


def run_stage(
    recipe: str, stage: str = "", run_dir: str = "", overrides: Sequence[str] | None = None
) -> None:
    """Run a stage and what it needs, in this process, as `prism run RECIPE:STAGE --jobs 1` does.

    Args:
        recipe: its name, or the path of a `.py` file.
        stage: empty for all stages.
        run_dir: empty for runs/RECIPE.
        overrides: 'key=value', as on the command line.

    Raises:
        SystemExit: with code 2 for a user's mistake or a failed stage.
    """
    setup_logging()
    try:
        graph, folder = _graph(recipe, stage, run_dir, overrides)
        graph.run(folder, target=stage or None, jobs=1)
    except PrismError as problem:
        print(f"error: {problem}", file=sys.stderr, flush=True)
        raise SystemExit(USER_ERROR_EXIT) from None


def stage_partial(recipe: str, stage: str, *, run_dir: str | Path = "", overrides: Sequence[str] = ()) -> Any:
    """`run_stage` as a `run.Partial`; see there for the arguments.

    Raises:
        ConfigError: for an unknown recipe, stage or key.
    """
    import nemo_run as run

    graph, folder = _graph(recipe, stage, run_dir, overrides)
    graph.node(stage)
    where = str(Path(recipe).resolve()) if recipe.endswith(".py") else recipe
    return run.Partial(run_stage, recipe=where, stage=stage, run_dir=str(folder), overrides=list(overrides))


def stage_script(
    recipe: str,
    stage: str,
    *,
    run_dir: str | Path = "",
    overrides: Sequence[str] = (),
    python: str = "python",
) -> Any:
    """One stage as a `run.Script`. Its job file is written; its inputs must exist when the script runs.

    Args:
        python: the interpreter on the nodes.

    Raises:
        ConfigError: for an unknown recipe, stage or key.
    """
    import nemo_run as run

    graph, folder = _graph(recipe, stage, run_dir, overrides)
    located = locate(graph.needed(stage), folder)
    folders = {name: each.folder for name, each in located.items()}
    file = write_job(job_of(located[stage], folder, folders), folder)
    (folder / "artifacts").mkdir(exist_ok=True)
    return run.Script(path=MODULE, args=[str(file)], entrypoint=python, m=True)


@contextmanager
def recipe_experiment(
    recipe: str,
    executor: str | Path,
    *,
    stage: str = "",
    run_dir: str | Path = "",
    overrides: Sequence[str] = (),
) -> Iterator[Any]:
    """An experiment with a task for each stage that is not done; call its `run`, or `run(detach=True)` on Slurm.

    `prism jobs`, `prism logs` and `prism cancel` know its tasks.

    Args:
        executor: an executor file (docs/launching.md).
        stage: only this stage and what it needs; empty for all.

    Raises:
        PrismError: before the block, for what would fail in the queue.
        StageFailed: after the block, if a task has failed.
    """
    graph, folder = _graph(recipe, stage, run_dir, overrides)
    located = locate(graph.needed(stage or None), folder)
    plan, jobs = prepare(load_recipe(recipe).name, located, folder, executor_file=Path(executor), rerun=set())
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    copy_of_the_code(plan.executor, folder)
    if plan.joined:
        waiting = ", ".join(f"'{name}' ({queued})" for name, queued in plan.joined.items())
        raise ConfigError(
            f"--run-dir {folder}: jobs of an earlier submission make {waiting}; wait for them, or end them with "
            f"`prism cancel --run-dir {folder}`"
        )
    with open_experiment(plan, jobs) as (experiment, submission):
        yield experiment
        detached = getattr(experiment, "detach", False)
        if submission.kind == SLURM:
            # nemo-run would wait for an array for ever, because `sacct` has no line with its number.
            experiment.detach = True
    if experiment._launched and not detached:
        _check(submission)
        for each in located.values():
            each.link(folder)


def _check(submission: Submission) -> None:
    """Raise a StageFailed about the first stage that failed, with its words."""
    if submission.kind == SLURM:
        wait_for_jobs(submission, lambda stage, state: None, lambda stage, line: None)
        return
    for name, task in submission.tasks.items():
        if task.state != DONE:
            raise StageFailed(failure_of(submission, name))


def require_success(experiment: Any) -> None:
    """After the block of an experiment: raise a StageFailed that names the tasks that have not succeeded."""
    from torchx.specs import AppState

    failed = [job.id for job in experiment.jobs if job.state != AppState.SUCCEEDED]
    if failed:
        raise StageFailed(
            f"experiment '{experiment._id}': {', '.join(failed)} did not succeed; see their logs"
        )


def command_line(entrypoint: Any) -> NoReturn:
    """nemo-run's command line for a function with `@run.cli.entrypoint`; exits with its code, which nemo-run drops."""
    import typer

    app = typer.Typer()
    entrypoint.cli_entrypoint._add_command(app, is_main=True)
    code = app(standalone_mode=False)
    sys.exit(code if isinstance(code, int) else 0)


def _graph(
    recipe: str, stage: str, run_dir: str | Path, overrides: Sequence[str] | None
) -> tuple[Graph, Path]:
    """The recipe's graph and the absolute run folder."""
    loaded = load_recipe(recipe)
    graph = loaded.graph(dict(parse_override(text) for text in overrides or ()), stage or None)
    return graph, (Path(run_dir) if run_dir else Path("runs") / loaded.name).resolve()
