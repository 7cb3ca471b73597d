"""`python -m megatron_prism.launching.job JOB.json`: what a node does when a job runs.

The first node holds the lock on the artifact's folder, runs the stage and seals the artifact; the other nodes only
start their processes, which meet those of the first. A stage whose artifact exists ends at once, so a job can be put
back into the queue at any time.

Exit codes: 0 done, 2 a user's mistake or a failed stage, 75 stopped with its state saved, 1 a bug or a lost process. On
the other nodes: 201 a lost process, 202 a mistake or a bug.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from megatron_prism.errors import REQUEUE_EXIT, USER_ERROR_EXIT, PrismError, Requeue, WorkerLost
from megatron_prism.launching.job_file import JobFile, open_inputs, read_job
from megatron_prism.launching.rendezvous import PortTaken, Rendezvous, rendezvous
from megatron_prism.pipeline.artifact import RECEIPT, Artifact, partial_path
from megatron_prism.pipeline.artifact_lock import artifact_lock
from megatron_prism.pipeline.launch import ONE_MACHINE, run_processes
from megatron_prism.pipeline.stage_run import StageRun
from megatron_prism.pipeline.stop_file import ask_to_stop
from megatron_prism.pipeline.worker_task import result_of, task_path, write_task
from megatron_prism.platform import stop_signals
from megatron_prism.platform.console import get_logger, setup_logging
from megatron_prism.platform.hardware import check_devices
from megatron_prism.platform.ports import is_free

LOST = 1
# Added to what goes wrong on another node than the first. That node's end makes srun stop the others, and the first
# takes that for a request to save; but srun's exit code is the largest of all, and with a signal it is at most 192.
ELSEWHERE = 200
# In the folder of the job files: asks the batch script to put the job back into the queue.
AGAIN = ".again"

# As the main module it has another name, and its lines would be lost.
log = get_logger("megatron_prism.launching.job")


def main(file: Path) -> int:
    """Run the job of this file; returns the exit code."""
    setup_logging()
    file = file.resolve()
    try:
        # Of a job's nodes the first decides; another one ends when its processes have saved, and not before.
        with stop_signals.handled(worker=_elsewhere() > 0, repeated=True):
            _run(file)
    except Requeue as stopped:
        log.info("%s", stopped)
        _put_back(file, REQUEUE_EXIT)
        return REQUEUE_EXIT
    except (WorkerLost, PortTaken) as problem:
        print(f"error: {problem}", file=sys.stderr, flush=True)
        _put_back(file, REQUEUE_EXIT if isinstance(problem, PortTaken) else LOST)
        return LOST + _elsewhere()
    except PrismError as problem:
        print(f"error: {' '.join(str(problem).split())}", file=sys.stderr, flush=True)
        return USER_ERROR_EXIT + _elsewhere()
    except Exception:
        if not _elsewhere():
            raise
        traceback.print_exc()
        return USER_ERROR_EXIT + ELSEWHERE
    return 0


def _elsewhere() -> int:
    return ELSEWHERE if rendezvous(os.environ).rank > 0 else 0


def _run(file: Path) -> None:
    job, run_dir, where = read_job(file), file.parents[1], rendezvous(os.environ)
    folder = run_dir / job.folder
    if folder.exists() and (not job.again or _is_newer(folder, file)):
        Artifact.open(folder, kind=job.stage().kind)
        log.info("stage '%s': done before, in %s", job.name, folder)
        return
    stage = job.stage()
    processes = max(1, stage.world_size // where.nodes)
    if where.rank > 0:
        if not _processes(task_path(partial_path(folder)), processes, where) and not stop_signals.received():
            raise WorkerLost(
                f"stage '{job.name}': a process on node {where.rank} failed; see the log of the first node"
            )
        return
    again_marker(file).unlink(missing_ok=True)
    with artifact_lock(folder):
        inputs = open_inputs(job, run_dir)
        run = StageRun(job.name, stage, fingerprint=job.fingerprint, folder=folder, inputs=inputs)
        log.info("stage '%s': starts on %d nodes x %d processes", job.name, where.nodes, processes)
        try:
            run.seal(_metrics(job, run, processes, where))
        except PrismError:
            raise
        except Exception as problem:
            explained = run.explain(problem)
            if explained is problem:
                raise
            raise explained from problem
    log.info("stage '%s': done in %.0f s", job.name, run.seconds)


def _is_newer(folder: Path, file: Path) -> bool:
    """Whether the artifact was made after its job was submitted; both times are those of the file server."""
    return (folder / RECEIPT).stat().st_mtime_ns > file.stat().st_mtime_ns


def _metrics(job: JobFile, run: StageRun, processes: int, where: Rendezvous) -> dict[str, Any]:
    """Run the stage; on several processes through torchrun, else in this process."""
    stage = run.stage
    if stage.world_size == 1:
        return stage.run(run.inputs, run.partial)
    check_devices(processes)
    task = write_task(stage, run.inputs, run.partial)
    stoppable = (
        stop_signals.forwarded(partial(ask_to_stop, run.partial)) if stage.stoppable else nullcontext()
    )
    # Rank 0 logs into the output of the job, so its lines are not relayed.
    with stoppable:
        succeeded = _processes(task, processes, where)
    try:
        return result_of(stage, task, succeeded=succeeded, log="the output of this job")
    except WorkerLost:
        # A signal that came before the workers could handle it ended them.
        if signal := stop_signals.received():
            raise Requeue(f"stage '{job.name}': stopped by {signal}") from None
        raise


def _processes(task: Path, processes: int, where: Rendezvous) -> bool:
    """Run this node's processes; whether all succeeded."""
    nodes: tuple[str, ...] = ONE_MACHINE
    if where.nodes > 1:
        if where.rank == 0 and not is_free(where.port):
            raise PortTaken(
                f"port {where.port} of {where.host}, where the nodes meet, was taken by another program after the "
                "batch script had chosen it; the job has to start again"
            )
        # The static rendezvous needs no agreement on who is first, and a node that comes back has its old rank.
        nodes = (
            f"--nnodes={where.nodes}",
            f"--node-rank={where.rank}",
            f"--master-addr={where.host}",
            f"--master-port={where.port}",
        )
    return run_processes(task, processes, threads=int(os.environ.get("OMP_NUM_THREADS", "1")), nodes=nodes)


def again_marker(file: Path) -> Path:
    """The file that says why a job ended: it has saved its state or lost a process, and may run again."""
    return file.with_suffix(AGAIN)


def _put_back(file: Path, code: int) -> None:
    """Leave word for the batch script, which knows whether the job may go back into the queue.

    The exit code of srun does not tell: it is the largest of all nodes, and srun kills those that are still there.
    """
    if rendezvous(os.environ).rank == 0:
        again_marker(file).write_text(f"{code}\n")


# Libraries may start processes that import this file again; without the guard they would run the job.
if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
