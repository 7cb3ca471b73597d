"""Which node of a job this is, and where its nodes meet: read from what Slurm, SkyPilot or Kubeflow set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_prism.errors import StageFailed

# Below the ports that Linux gives to outgoing connections (from 32768), and above those of services.
FIRST_PORT, PORTS = 20_000, 12_000
# What the batch script has found out for all nodes: the address of the first, and a port that was free there.
HEAD, PORT = "PRISM_HEAD_NODE", "PRISM_PORT"


class PortTaken(StageFailed):
    """Another program has taken the port since the batch script chose it, so the job must start again."""


@dataclass(frozen=True)
class Rendezvous:
    """The nodes of a job.

    Attributes:
        host: name or address of the first node; empty if there is only one.
        port: where torchrun's processes meet; each job of a machine has its own.
        job: the number or name of the job, which keeps the groups of two jobs apart.
    """

    nodes: int = 1
    rank: int = 0
    host: str = ""
    port: int = 0
    job: str = "local"


def rendezvous(environment: Mapping[str, str]) -> Rendezvous:
    """The nodes of the job that this process belongs to; a single node outside any job."""
    if "SLURM_JOB_ID" in environment and "SLURM_NODEID" in environment:
        job = environment["SLURM_JOB_ID"]
        return Rendezvous(
            nodes=int(environment.get("SLURM_NNODES", "1")),
            rank=int(environment["SLURM_NODEID"]),
            host=environment.get(HEAD, "").split(" ")[0],
            port=int(environment.get(PORT) or FIRST_PORT + int(job) % PORTS),
            job=job,
        )
    if "SKYPILOT_NODE_RANK" in environment:
        hosts = environment["SKYPILOT_NODE_IPS"].split()
        task = environment.get("SKYPILOT_TASK_ID", "sky")
        return Rendezvous(len(hosts), int(environment["SKYPILOT_NODE_RANK"]), hosts[0], FIRST_PORT, task)
    if "PET_NODE_RANK" in environment:
        return Rendezvous(
            nodes=int(environment.get("PET_NNODES", "1")),
            rank=int(environment["PET_NODE_RANK"]),
            host=environment.get("PET_MASTER_ADDR", ""),
            port=int(environment.get("PET_MASTER_PORT", FIRST_PORT)),
            job=environment.get("PET_RDZV_ID", "kubeflow"),
        )
    return Rendezvous()
