"""Jobs as tasks of a nemo-run experiment. nemo-run takes seconds to import, so it is imported only when it is used.

nemo-run writes its files below the experiment's folder, `RUN_DIR/launch/nemo/experiments`, whose name is a number:
the next submission of this run folder. So a dry run, made in a temporary folder, shows the script of a live one.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_prism.launching.array import array_option, marker_word
from megatron_prism.launching.batch import head_node, setup_lines
from megatron_prism.launching.executor import Executor, Resources
from megatron_prism.launching.task import Task

# nemo-run replaces it in a script by the folder of the job.
REPLACED = "/nemo_run"
# Since Slurm 22.05 srun does not take the number of cores from the job's header, and may bind a task to one of them.
SRUN_CPUS = "SRUN_CPUS_PER_TASK"
# After `sbatch --export=NONE`, the default of some clusters, srun would drop the variables that the script exports.
EXPORTED = {"SLURM_EXPORT_ENV": "ALL"}
# nemo-run's `--wait=60` would end the first node, with exit code 0, if it seals for a minute after the others are done.
WAIT = "--wait=0"
MODULE, ARRAY_MODULE = "megatron_prism.launching.job", "megatron_prism.launching.array"


def command(task: Task) -> list[str]:
    """The argv of a job, on every node."""
    return [interpreter(task.resources), "-m", ARRAY_MODULE if task.members else MODULE, str(task.file)]


def interpreter(resources: Resources) -> str:
    """The Python of the nodes: that of the container, or the running one if the nodes see this machine's files."""
    return resources.python or ("python" if resources.container_image else sys.executable)


def environment(task: Task) -> dict[str, str]:
    """The variables of a job."""
    found = {"OMP_NUM_THREADS": str(task.resources.cpus_per_process), "PYTHONUNBUFFERED": "1"}
    if task.code is not None:
        found["PYTHONPATH"] = str(task.code)
    return found | dict(task.resources.env)


def prepare_nemo_run(home: Path) -> None:
    """Set where nemo-run keeps its files, which it reads when it is imported."""
    os.environ["NEMORUN_HOME"] = str(home)
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


def import_nemo_run(home: Path) -> None:
    """Import nemo-run and what it imports late, so that all of it takes `home` for its files."""
    prepare_nemo_run(home)
    import nemo_run.run.torchx_backend.schedulers.slurm  # noqa: F401


@contextmanager
def experiment(title: str, number: int, home: Path) -> Iterator[Any]:
    """An experiment of nemo-run that prints nothing; its files are below `home`."""
    prepare_nemo_run(home)
    import nemo_run as run

    made = run.Experiment(
        title,
        id=f"{title}_{number:04d}",
        base_dir=str(home),
        log_level="ERROR",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
    )
    with _no_input(), made:
        yield made


@contextmanager
def _no_input() -> Iterator[None]:
    """The library with which nemo-run calls programs reads the standard input, which is the user's or a pipe's."""
    before = sys.stdin
    with Path(os.devnull).open() as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


def add_tasks(made: Any, tasks: Sequence[Task], executor: Executor, *, home: Path, title: str) -> None:
    """Add the tasks with their dependencies, in order."""
    for task in tasks:
        made.add(
            script_of(task, executor),
            executor=nemo_executor(task, executor, home, title),
            name=task.name,
            dependencies=list(task.after) or None,
        )


def script_of(task: Task, executor: Executor) -> Any:
    """The task as nemo-run's `Script`."""
    import nemo_run as run

    program, *arguments = command(task)
    quote = shlex.quote if executor.kind != "local" else str
    # nemo-run joins the words with blanks and gives them to a shell, but for local tasks.
    _, module, *rest = arguments
    return run.Script(path=module, args=[quote(each) for each in rest], entrypoint=quote(program), m=True)


def nemo_executor(task: Task, executor: Executor, home: Path, title: str) -> Any:
    """The executor of a task, of nemo-run's class for this kind."""
    if executor.kind == "slurm":
        return _slurm(task, home, title)
    return {"local": _local, "docker": _docker, "skypilot": _skypilot, "kubeflow": _kubeflow}[executor.kind](
        task
    )


def _local(task: Task) -> Any:
    import nemo_run as run

    return run.LocalExecutor(env_vars=environment(task), packager=run.Packager())


def _slurm(task: Task, home: Path, title: str) -> Any:
    import nemo_run as run

    r, placement = task.resources, task.placement
    cpus = r.cpus_per_process * placement.processes
    parameters: dict[str, Any] = {
        "kill_on_invalid_dep": "yes",
        "requeue" if r.requeue else "no_requeue": True,
    }
    # sbatch's `--dependency=afterok:1:2:3`: nemo-run adds the jobs of this submission, if there are any.
    earlier = ":".join(["afterok", *(number for _, number in task.waits_for)])
    if task.waits_for and not task.after:
        parameters["dependency"] = earlier
    run_dir = task.file.parents[1]
    mounts = [*r.container_mounts, f"{run_dir}:{run_dir}"] if r.container_image else []
    if task.code is not None and r.container_image:
        mounts.append(f"{task.code}:{task.code}")
    made = run.SlurmExecutor(
        account=r.account,
        partition=r.partition,
        job_name_prefix=f"{title}.",
        time=r.time,
        nodes=placement.nodes,
        ntasks_per_node=1,
        cpus_per_task=cpus,
        gpus_per_node=r.gpus_per_node or None if r.request_gpus else None,
        qos=r.qos or None,
        constraint=r.constraint or None,
        comment=r.comment or None,
        mem=r.mem or None,
        exclusive=True if r.exclusive else None,
        signal=f"USR1@{r.warn_seconds}" if r.warn_seconds else None,
        container_image=r.container_image or None,
        container_mounts=mounts,
        srun_args=[WAIT, *r.srun_args],
        additional_parameters=parameters | r.additional_parameters,
        setup_lines=setup_lines(
            marker_word(task), r, [member.name for member in task.members], nodes=placement.nodes
        ),
        tunnel=run.LocalTunnel(job_dir=str(home / "experiments")),
        packager=run.Packager(),
        env_vars=_quoted(environment(task)) | head_node() | {SRUN_CPUS: str(cpus)} | EXPORTED,
        poll_estimated_start_time=False,
        array=array_option(task),
        dependency_type=earlier,
    )
    if task.members:
        from megatron_prism.launching.array_logs import ArrayJobDetails

        made.job_details = ArrayJobDetails()
    return made


def _docker(task: Task) -> Any:
    import nemo_run as run

    r, run_dir = task.resources, task.file.parents[1]
    volumes = [*r.container_mounts, f"{run_dir}:{run_dir}"]
    if task.code is not None:
        volumes.append(f"{task.code}:{task.code}")
    chosen = {key: value for key in ("shm_size", "network", "runtime") if (value := getattr(r, key))}
    # The image's own user could not write into the run folder, and root's files would not be the user's.
    user = f"{os.getuid()}:{os.getgid()}"
    return run.DockerExecutor(
        container_image=r.container_image,
        num_gpus=task.placement.processes if r.gpus_per_node else None,
        volumes=volumes,
        ipc_mode="host",
        env_vars=environment(task),
        packager=run.Packager(),
        additional_kwargs={"user": user},
        **chosen,
    )


def _skypilot(task: Task) -> Any:
    import nemo_run as run

    r = task.resources
    return run.SkypilotExecutor(
        container_image=r.container_image or None,
        cloud=r.cloud or None,
        region=r.region or None,
        gpus=r.gpus or None,
        gpus_per_node=r.gpus_per_node or None,
        num_nodes=task.placement.nodes,
        use_spot=r.use_spot,
        cluster_name=r.cluster_name,
        idle_minutes_to_autostop=r.idle_minutes_to_autostop,
        storage_mounts=dict(r.storage_mounts) or None,
        setup=r.setup or None,
        env_vars=environment(task),
        packager=run.Packager(),
    )


def _kubeflow(task: Task) -> Any:
    import nemo_run as run

    r = task.resources
    return run.KubeflowExecutor(
        image=r.container_image,
        namespace=r.namespace,
        runtime_ref=r.runtime_ref,
        num_nodes=task.placement.nodes,
        nprocs_per_node=1,
        gpus_per_node=r.gpus_per_node or None,
        volumes=list(r.volumes),
        volume_mounts=list(r.volume_mounts),
        env_vars=environment(task),
        packager=run.Packager(),
    )


def _quoted(variables: Mapping[str, str]) -> dict[str, str]:
    """Values for `export NAME=VALUE` in a script.

    nemo-run takes them for templates of Python, in which "$$" is one "$", and replaces `REPLACED`; two quotes in the
    middle of a word change nothing for the shell.
    """
    halves = f"{REPLACED[:-1]}''{REPLACED[-1]}"
    return {
        key: shlex.quote(value).replace("$", "$$").replace(REPLACED, halves)
        for key, value in variables.items()
    }
