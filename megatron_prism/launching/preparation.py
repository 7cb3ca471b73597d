"""What a submission consists of, checked before anything is written or sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron_prism.launching.checks import check_submission
from megatron_prism.launching.executor import load_executor
from megatron_prism.launching.in_queue import SLURM, joined_tasks
from megatron_prism.launching.job_file import JobFile
from megatron_prism.launching.packaging import copy_of_the_code
from megatron_prism.launching.submission import Plan
from megatron_prism.launching.tasks import jobs_to_submit, tasks_of
from megatron_prism.pipeline.node import Located


def prepare(
    recipe: str, located: Mapping[str, Located], run_dir: Path, *, executor_file: Path, rerun: set[str]
) -> tuple[Plan, dict[str, JobFile]]:
    """The tasks of the stages that are not done and that no job in the queue makes, and their job files by stage.

    Args:
        run_dir: absolute; the nodes are in folders below it.
        rerun: names of stages to run although they are done.

    Raises:
        PrismError: for what would fail in the queue.
    """
    executor = load_executor(executor_file)
    jobs = jobs_to_submit(located, run_dir, rerun)
    joined = joined_tasks(jobs, run_dir, rerun) if executor.kind == SLURM and jobs else {}
    code = copy_of_the_code(executor, run_dir, write=False)
    tasks = tasks_of(jobs, located, run_dir, executor=executor, code=code, joined=joined)
    check_submission(recipe, tasks, executor, run_dir)
    return Plan(recipe, run_dir, executor, tasks, joined), {task.name: jobs[task.name] for task in tasks}
