"""`prism run ... --executor FILE`: the stages as jobs of a cluster, or of this machine, through nemo-run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_prism.cli.output import show_line, show_table, write_result
from megatron_prism.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from megatron_prism.launching.job_file import JobFile
    from megatron_prism.launching.submission import Plan
    from megatron_prism.pipeline.artifact import Artifact
    from megatron_prism.pipeline.node import Located

INTERRUPT = "the jobs go on; `prism jobs --run-dir {run_dir}` shows them, `prism cancel --run-dir {run_dir}` ends them"


def launch(
    recipe: str,
    located: Mapping[str, Located],
    *,
    executor_file: Path,
    run_dir: Path,
    rerun: set[str],
    detach: bool,
    dry_run: bool,
    json_file: str | None,
) -> dict[str, Artifact]:
    """Submit what is not done; wait for it unless `detach`; with `dry_run`, show the scripts only.

    Returns:
        The artifacts by stage when all are done; none otherwise.

    Raises:
        ConfigError: for what would fail in the queue; nothing is submitted then.
        StageFailed: if a job failed.
    """
    from megatron_prism.launching.checks import check_scripts
    from megatron_prism.launching.preparation import prepare
    from megatron_prism.launching.submission import SLURM, scripts

    run_dir = run_dir.resolve()
    prepared = partial(prepare, recipe, located, run_dir, executor_file=executor_file, rerun=rerun)
    plan, _ = prepared()
    executor = plan.executor
    if detach and executor.kind != "slurm":
        raise ConfigError(
            f"--detach: kind: {executor.kind} runs its stages from this process; only slurm can go on alone"
        )
    if dry_run:
        shown = scripts(plan)
        if executor.kind == SLURM:
            check_scripts(shown, executor)
        for name, text in shown.items():
            show_line(json_file, f"### {name}\n{text}\n")
        _tell_joined(plan)
        show_line(json_file, f"{len(plan.tasks)} of {len(located)} stages would be submitted")
        write_result(json_file, {"recipe": recipe, "run_dir": str(run_dir), "scripts": shown})
        return {}
    if not plan.tasks and not plan.joined:
        show_line(json_file, f"nothing to submit: all {len(located)} stages are done")
        write_result(json_file, {"recipe": recipe, "run_dir": str(run_dir), "jobs": {}})
        return _artifacts(located, run_dir)
    (run_dir / "artifacts").mkdir(parents=True, exist_ok=True)
    submitted = _run(prepared, detach, json_file)
    made = {} if detach else _artifacts(located, run_dir)
    write_result(json_file, {"recipe": recipe, "run_dir": str(run_dir), "jobs": submitted})
    return made


def _tell_joined(plan: Plan) -> None:
    from megatron_prism.platform.console import get_logger

    for name, queued in plan.joined.items():
        get_logger(__name__).info("stage '%s': not submitted again, %s makes it", name, queued)


def _run(
    prepared: Callable[[], tuple[Plan, dict[str, JobFile]]], detach: bool, json_file: str | None
) -> dict[str, str]:
    from megatron_prism.launching.packaging import copy_of_the_code
    from megatron_prism.launching.submission import SLURM, run_one_by_one, submit_to_slurm
    from megatron_prism.launching.submission_lock import submission_lock
    from megatron_prism.launching.waiting import wait_for_jobs
    from megatron_prism.platform.console import get_logger

    log = get_logger(__name__)

    def tell(name: str, state: str) -> None:
        log.info("stage '%s': %s", name, state.lower())

    plan, jobs = prepared()
    if plan.executor.kind != SLURM:
        copy_of_the_code(plan.executor, plan.run_dir)
        return {name: task.state for name, task in run_one_by_one(plan, jobs, tell).tasks.items()}
    with submission_lock(plan.run_dir):
        # Another `prism run` may have submitted since.
        plan, jobs = prepared()
        _tell_joined(plan)
        copy_of_the_code(plan.executor, plan.run_dir)
        submission = plan.with_joined(submit_to_slurm(plan, jobs) if plan.tasks else None)
    rows = [
        [name, task.job, str(task.nodes), str(task.processes), ", ".join(task.after)]
        for name, task in submission.tasks.items()
    ]
    show_table(
        json_file,
        f"jobs of {plan.run_dir}",
        ["stage", "job", "nodes", "processes per node", "after"],
        rows,
    )
    if not detach:
        try:
            wait_for_jobs(submission, tell, lambda name, line: log.info("%s | %s", name, line))
        except KeyboardInterrupt:
            log.warning(INTERRUPT.format(run_dir=plan.run_dir))
            raise
    return {name: task.job for name, task in submission.tasks.items()}


def _artifacts(located: Mapping[str, Located], run_dir: Path) -> dict[str, Artifact]:
    """Open what the jobs have made, and link it by name."""
    from megatron_prism.pipeline.artifact import Artifact

    made = {}
    for name, each in located.items():
        if not each.folder.exists():
            raise ArtifactError(
                f"{each.folder}: the job of stage '{name}' has ended, but its artifact is missing; see its log"
            )
        made[name] = Artifact.open(each.folder, kind=each.node.stage.kind)
        each.link(run_dir)
    return made
