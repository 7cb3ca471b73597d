"""Run a stage on its processes: in this process if it needs one, else with nemo-run's local torchrun executor.

nemo-run exits with 0 when a task fails, so the job states are checked here. The output of nemo-run and torchrun stays
in their log files; the workers' log lines are relayed by log_relay.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.log_relay import show_lines
from megatron_prism.pipeline.stage import Stage
from megatron_prism.pipeline.stop_file import ask_to_stop
from megatron_prism.pipeline.worker_task import PATIENCE, WORKER, result_of, write_task
from megatron_prism.platform import stop_signals
from megatron_prism.platform.hardware import check_devices


def run_stage(stage: Stage, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Run a stage on `stage.world_size` processes and return its metrics.

    Raises:
        StageFailed: if a worker process failed; the message has the worker's error or names its log.
        Requeue: if the stage was asked to stop, and did.
    """
    if stage.world_size == 1:
        return stage.run(inputs, out)
    return _run_with_torchrun(stage, inputs, out)


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
    script = run.Script(path=WORKER, args=[str(task.resolve())], entrypoint="python", m=True)
    stoppable = stop_signals.forwarded(partial(ask_to_stop, out)) if stage.stoppable else nullcontext()
    with (
        stoppable,
        show_lines(task.parent),
        run.Experiment(f"prism-{stage.kind}", log_level="ERROR", clean_mode=True) as experiment,
    ):
        experiment.add(script, executor=executor, name=stage.kind)
        experiment.run(detach=False)
    succeeded = all(job.state == AppState.SUCCEEDED for job in experiment.jobs)
    log = f"{os.environ['NEMORUN_HOME']}/experiments"
    return result_of(stage, task, succeeded=succeeded, log=log)
