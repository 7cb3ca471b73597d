"""The configuration files of the test cluster: two nodes with pre-emption, short timeouts, and accounting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CLUSTER, ACCOUNT, PARTITION, URGENT = "testing", "lab", "batch", "urgent"
CPUS, GPUS = 4, 4
# How long a pre-empted job may take to save, and the longest time limit of a job, in seconds and minutes.
GRACE_SECONDS, MAX_MINUTES = 40, 60
# After how many seconds without an answer a node is taken for dead. Slurm asks three times in this time.
DEAD_SECONDS = 6


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. All share the network of this host, each with a loopback address of its own."""

    name: str
    address: str
    port: int


def slurm_conf(root: Path, host: str, nodes: Mapping[str, Node], ports: Mapping[str, int]) -> str:
    """The text of slurm.conf.

    Args:
        host: the short name of this machine, on which the controller runs.
        ports: the ports of the daemons, by name.
    """
    machines = "\n".join(
        f"NodeName={node.name} NodeHostname={node.name} NodeAddr={node.address} Port={node.port} CPUs={CPUS} "
        f"RealMemory=8000 Gres=gpu:{GPUS} State=UNKNOWN"
        for node in nodes.values()
    )
    return f"""ClusterName={CLUSTER}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports["slurmctld"]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports["slurmdbd"]}
AccountingStoragePass={root}/munge/socket
AccountingStorageEnforce=associations,limits
EnforcePartLimits=ALL
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,preempt_send_user_signal
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd_%n.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldLogFile={root}/log/slurmctld
SlurmdLogFile={root}/log/slurmd_%n
SlurmdTimeout={DEAD_SECONDS}
KillWait=2
MinJobAge=300
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{machines}
PartitionName={PARTITION} Nodes=ALL Default=YES MaxTime={MAX_MINUTES} PriorityTier=1 GraceTime={GRACE_SECONDS}
PartitionName={URGENT} Nodes=ALL MaxTime={MAX_MINUTES} PriorityTier=10 PreemptMode=OFF
"""


def slurmdbd_conf(root: Path, ports: Mapping[str, int]) -> str:
    """The text of slurmdbd.conf."""
    return f"""AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports["slurmdbd"]}
SlurmUser=root
LogFile={root}/log/slurmdbd
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


def gres_conf(root: Path) -> str:
    """The text of gres.conf: GPUs that exist only in the books, as no job opens their files."""
    return f"Name=gpu File={root}/gpu[0-{GPUS - 1}]\n"
