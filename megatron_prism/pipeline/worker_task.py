"""A stage on several processes: the file that tells each of them what to do, and what they leave behind.

The file holds the stage, its inputs and its output folder; a worker needs nothing else. Rank 0 leaves the metrics next
to it, or why it stopped; a rank that fails leaves the reason.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prism.errors import USER_ERROR_EXIT, PrismError, Requeue, StageFailed, WorkerLost
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import from_mapping, to_mapping
from megatron_prism.pipeline.log_relay import relay_lines
from megatron_prism.pipeline.stage import Stage
from megatron_prism.pipeline.stage_class import class_reference, find_class
from megatron_prism.platform import stop_signals

TASK_FOLDER = ".launch"
TASK, METRICS, STOPPED = "task.json", "metrics.json", "stopped.json"
WORKER = "megatron_prism.pipeline.torchrun_worker"
# Torchrun passes signals on to the workers, and kills those that still run after 30 s: too soon to save a large model.
PATIENCE = {
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600",
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
}


def task_path(out: Path) -> Path:
    """Where the task file of the output folder `out` is."""
    return out / TASK_FOLDER / TASK


def write_task(stage: Stage, inputs: Mapping[str, Artifact], out: Path) -> Path:
    """Write the task file, with everything a worker needs to run `stage`, under `out`."""
    task = task_path(out)
    task.parent.mkdir(parents=True, exist_ok=True)
    for stale in task.parent.glob("*.json*"):
        stale.unlink()
    write_json(
        task,
        {
            **class_reference(type(stage)),
            "config": to_mapping(stage),
            "inputs": {name: str(artifact.path.resolve()) for name, artifact in inputs.items()},
            "out": str(out.resolve()),
            "launcher": os.getpid(),
        },
    )
    return task


def run_task(task: Path) -> None:
    """In a worker: run the stage of a task file; rank 0 writes the metrics next to the file, or why it stopped."""
    data = json.loads(task.read_text())
    try:
        stage = from_mapping(find_class(data), data["config"], where=str(task))
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
        write_json(task.with_name(METRICS), metrics)


def has_failed(task: Path) -> bool:
    """Whether a worker other than this one has left an error."""
    own = f"error-{os.environ.get('RANK', '0')}.json"
    return any(path.name != own for path in task.parent.glob("error-*.json"))


def result_of(stage: Stage, task: Path, *, succeeded: bool, log: str) -> dict[str, Any]:
    """In the launcher, when all workers have ended: the metrics; the files of the task are removed.

    Args:
        succeeded: whether the launcher saw no worker fail.
        log: where the output of the workers is, for a message.

    Raises:
        Requeue: if the stage was asked to stop, and did.
        StageFailed: with the words of a worker; `WorkerLost` if none left any.
    """
    metrics = task.with_name(METRICS)
    if task.with_name(STOPPED).exists():
        raise Requeue(json.loads(task.with_name(STOPPED).read_text())["reason"])
    if not succeeded or not metrics.exists():
        reasons = sorted({json.loads(p.read_text())["error"] for p in task.parent.glob("error-*.json")})
        reason = f": {reasons[0]}" if reasons else f"; see its log in {log}"
        failure = StageFailed if reasons else WorkerLost
        raise failure(f"a stage of kind '{stage.kind}' failed on {stage.world_size} processes{reason}")
    result: dict[str, Any] = json.loads(metrics.read_text())
    for leftover in task.parent.iterdir():
        leftover.unlink()
    task.parent.rmdir()
    return result
