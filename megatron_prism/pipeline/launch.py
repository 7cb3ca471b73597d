"""Run a stage on its processes: in this process if it needs one, else with torchrun on this machine.

What torchrun and libraries print goes to a log file next to the artifacts; the workers' log lines are relayed by
log_relay.py. Several machines, and nemo-run, are the business of `launching`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any

from megatron_prism.pipeline.artifact import PARTIAL_SUFFIX, Artifact
from megatron_prism.pipeline.log_relay import show_lines
from megatron_prism.pipeline.orphans import LAUNCHER
from megatron_prism.pipeline.stage import Stage
from megatron_prism.pipeline.stop_file import ask_to_stop
from megatron_prism.pipeline.worker_task import PATIENCE, WORKER, result_of, write_task
from megatron_prism.platform import stop_signals
from megatron_prism.platform.hardware import check_devices

LOGS = ".torchrun"
# The address, because torchrun would take the machine's name, which containers and laptops cannot always resolve.
ONE_MACHINE = ("--standalone", "--local-addr=127.0.0.1")


def run_stage(stage: Stage, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Run a stage on `stage.world_size` processes and return its metrics.

    Raises:
        StageFailed: if a worker process failed; the message has the worker's error or names its log.
        Requeue: if the stage was asked to stop, and did.
    """
    if stage.world_size == 1:
        return stage.run(inputs, out)
    check_devices(stage.world_size)
    task = write_task(stage, inputs, out)
    threads = max(1, (os.cpu_count() or 1) // stage.world_size)
    log = out.parent / LOGS / f"{out.name.removesuffix(PARTIAL_SUFFIX)}.log"
    log.parent.mkdir(exist_ok=True)
    stoppable = stop_signals.forwarded(partial(ask_to_stop, out)) if stage.stoppable else nullcontext()
    with stoppable, show_lines(task.parent), log.open("ab") as output:
        succeeded = run_processes(task, stage.world_size, threads=threads, output=output)
    return result_of(stage, task, succeeded=succeeded, log=str(log))


def run_processes(
    task: Path,
    processes: int,
    *,
    threads: int,
    nodes: Sequence[str] = ONE_MACHINE,
    output: IO[bytes] | None = None,
) -> bool:
    """Run this machine's processes of a task with torchrun, to their end; whether all succeeded.

    Args:
        nodes: torchrun's arguments that say which machines take part.
        output: where torchrun and the workers print; None for the output of this process.
    """
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, f"--nproc-per-node={processes}"]
    environment = {
        **os.environ,
        **PATIENCE,
        LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
    ended = subprocess.run(
        [*command, "-m", WORKER, str(task.resolve())],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        check=False,
    )
    return ended.returncode == 0
