"""Run a stage on its processes: in this process if it needs one, else with nemo-run's local torchrun executor.

A small JSON task file holds the stage, its inputs and its output folder; a worker needs nothing else. nemo-run exits
with 0 when a task fails, so the job states are checked here. The output of nemo-run and torchrun stays in their log
files; the workers' log lines are relayed by log_relay.py.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from megatron_prism.errors import PrismError, Requeue, StageFailed, WorkerLost
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import from_mapping, to_mapping
from megatron_prism.pipeline.log_relay import relay_lines, show_lines
from megatron_prism.pipeline.stage import Stage
from megatron_prism.pipeline.stop_file import ask_to_stop
from megatron_prism.platform import stop_signals
from megatron_prism.platform.hardware import check_devices

TASK_FOLDER = ".launch"
USER_ERROR_EXIT = 2
STOPPED = "stopped.json"
# Torchrun passes signals on to the workers, and kills those that still run after 30 s: too soon to save a large model.
PATIENCE = {
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600",
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
}


def run_stage(stage: Stage, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Run a stage on `stage.world_size` processes and return its metrics.

    Raises:
        StageFailed: if a worker process failed; the message has the worker's error or names its log.
        Requeue: if the stage was asked to stop, and did.
    """
    if stage.world_size == 1:
        return stage.run(inputs, out)
    return _run_with_torchrun(stage, inputs, out)


def write_task(stage: Stage, inputs: Mapping[str, Artifact], out: Path) -> Path:
    """Write the task file, with everything a worker needs to run `stage`, under `out`."""
    folder = out / TASK_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.json*"):
        stale.unlink()
    task = folder / "task.json"
    cls = type(stage)
    launcher = os.getpid()
    write_json(
        task,
        {
            "stage": f"{cls.__module__}:{cls.__qualname__}",
            "config": to_mapping(stage),
            "inputs": {name: str(artifact.path.resolve()) for name, artifact in inputs.items()},
            "out": str(out.resolve()),
            "launcher": launcher,
        },
    )
    return task


def run_task(task: Path) -> None:
    """In a worker: run the stage of a task file; rank 0 writes the metrics next to the file, or why it stopped."""
    data = json.loads(task.read_text())
    module, _, name = data["stage"].partition(":")
    cls = getattr(importlib.import_module(module), name)
    try:
        stage = from_mapping(cls, data["config"], where=str(task))
        inputs = {key: Artifact.open(Path(path)) for key, path in data["inputs"].items()}
        with relay_lines(task.parent), stop_signals.handled(worker=True):
            metrics = stage.run(inputs, Path(data["out"]))
    except PrismError as problem:
        write_json(task.with_name(f"error-{os.environ.get('RANK', '0')}.json"), {"error": str(problem)})
        print(f"error: {problem}", file=sys.stderr, flush=True)
        raise SystemExit(USER_ERROR_EXIT) from None
    except Requeue as stopped:
        # All ranks stop at the same step, and with this exit code torchrun does not take it for a failure.
        if int(os.environ.get("RANK", "0")) == 0:
            write_json(task.with_name(STOPPED), {"reason": str(stopped)})
        return
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(task.with_name("metrics.json"), metrics)


def _run_with_torchrun(stage: Stage, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    check_devices(stage.world_size)
    task = write_task(stage, inputs, out)
    # nemo-run takes seconds to import, so it is imported only here. It looks up `python` and `torchrun` on PATH, so the
    # folder of the running interpreter comes first there.
    os.environ.setdefault("NEMORUN_HOME", str(out.resolve().parent / ".nemo_run"))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    import nemo_run as run
    from torchx.specs import AppState

    threads = max(1, (os.cpu_count() or 1) // stage.world_size)
    executor = run.LocalExecutor(
        ntasks_per_node=stage.world_size,
        launcher="torchrun",
        env_vars={"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **PATIENCE},
    )
    script = run.Script(
        path="megatron_prism.pipeline.torchrun_worker",
        args=[str(task.resolve())],
        entrypoint="python",
        m=True,
    )
    stoppable = stop_signals.forwarded(partial(ask_to_stop, out)) if stage.stoppable else nullcontext()
    with (
        stoppable,
        show_lines(task.parent),
        run.Experiment(f"prism-{stage.kind}", log_level="ERROR", clean_mode=True) as experiment,
    ):
        experiment.add(script, executor=executor, name=stage.kind)
        experiment.run(detach=False)
    states = [job.state for job in experiment.jobs]
    metrics = task.with_name("metrics.json")
    if task.with_name(STOPPED).exists():
        raise Requeue(json.loads(task.with_name(STOPPED).read_text())["reason"])
    if any(state != AppState.SUCCEEDED for state in states) or not metrics.exists():
        reasons = sorted({json.loads(p.read_text())["error"] for p in task.parent.glob("error-*.json")})
        reason = (
            f": {reasons[0]}" if reasons else f"; see its log in {os.environ['NEMORUN_HOME']}/experiments"
        )
        failure = StageFailed if reasons else WorkerLost
        raise failure(f"a stage of kind '{stage.kind}' failed on {stage.world_size} processes{reason}")
    result: dict[str, Any] = json.loads(metrics.read_text())
    for leftover in task.parent.iterdir():
        leftover.unlink()
    task.parent.rmdir()
    return result
