"""The processes of a stage on one node of a job, started with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from megatron_prism.launching.placement import Placement
from megatron_prism.launching.rendezvous import Rendezvous
from megatron_prism.pipeline.orphans import LAUNCHER
from megatron_prism.pipeline.worker_task import PATIENCE, WORKER


def torchrun_command(task: Path, placement: Placement, where: Rendezvous) -> list[str]:
    """The command that runs this node's share of a stage; every node has the same but for its rank."""
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += [f"--nnodes={placement.nodes}", f"--nproc-per-node={placement.processes}"]
    if placement.nodes == 1:
        command += ["--standalone"]
    else:
        # The static rendezvous needs no agreement on who is first, and a node that comes back has its old rank.
        command += [f"--node-rank={where.rank}", f"--master-addr={where.host}", f"--master-port={where.port}"]
    return [*command, "-m", WORKER, str(task)]


def run_processes(task: Path, placement: Placement, where: Rendezvous) -> bool:
    """Run this node's processes to their end; whether all succeeded."""
    environment = {**os.environ, **PATIENCE, LAUNCHER: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    ended = subprocess.run(torchrun_command(task, placement, where), env=environment, check=False)
    return ended.returncode == 0
