"""From a recipe's graph to the tasks of a submission: the stages that are not done, with what each waits for."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

from megatron_prism.errors import ArtifactError
from megatron_prism.launching.executor import Executor
from megatron_prism.launching.in_queue import QueuedTask
from megatron_prism.launching.job_file import JobFile, job_of, job_path
from megatron_prism.launching.placement import place
from megatron_prism.launching.task import Task
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.node import Located

# Executors of nemo-run with one machine per task.
SINGLE_NODE = ("local", "docker")


def jobs_to_submit(
    located: Mapping[str, Located],
    run_dir: Path,
    rerun: Set[str],
) -> dict[str, JobFile]:
    """The stages without a finished artifact, and those of `rerun`, by name, in order. Equal stages become one job.

    Raises:
        ArtifactError: if the artifact of a finished stage is damaged.
    """
    folders = {name: each.folder for name, each in located.items()}
    jobs: dict[str, JobFile] = {}
    seen: set[Path] = set()
    for name, each in located.items():
        if each.folder in seen:
            continue
        if each.folder.exists() and name not in rerun:
            _open(each)
            continue
        seen.add(each.folder)
        jobs[name] = job_of(each, run_dir, folders, again=name in rerun)
    return jobs


def _open(each: Located) -> None:
    try:
        Artifact.open(each.folder, kind=each.node.stage.kind)
    except ArtifactError as problem:
        raise ArtifactError(
            f"stage '{each.node.name}' is done, but its artifact is damaged: {problem}"
        ) from None


def tasks_of(
    jobs: Mapping[str, JobFile],
    located: Mapping[str, Located],
    run_dir: Path,
    *,
    executor: Executor,
    code: Path | None = None,
    joined: Mapping[str, QueuedTask] | None = None,
) -> list[Task]:
    """The tasks of a submission.

    Args:
        code: see `Task.code`.
        joined: stages that jobs of earlier submissions make; they get no task.

    Raises:
        ConfigError: for a missing or impossible value of the executor file.
        ParallelError: if a stage's processes do not fit the nodes.
    """
    executor.check_stages({*located, *(each.node.stage.kind for each in located.values())})
    owners = {job.folder: name for name, job in jobs.items()}
    joined = joined or {}
    tasks = []
    for name, job in jobs.items():
        if name in joined:
            continue
        stage = located[name].node.stage
        resources = executor.resources(name, stage.kind)
        placement = place(name, stage.world_size, resources, single_node=executor.kind in SINGLE_NODE)
        needed = dict.fromkeys(owners[folder] for folder in job.inputs.values() if folder in owners)
        after = tuple(each for each in needed if each not in joined)
        earlier = tuple((each, joined[each].task.job) for each in needed if each in joined)
        tasks.append(Task(name, job_path(job, run_dir), placement, resources, after, code, waits_for=earlier))
    return tasks
