"""Whether a partition's nodes have what a stage asks for, whatever they do at this moment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prism.errors import ConfigError, ServerError, suggest
from megatron_prism.launching.slurm import ask_slurm
from megatron_prism.launching.task import Task
from megatron_prism.platform.console import get_logger

# Beginnings of the states of nodes that get no new jobs.
AWAY = ("down", "drain", "fail", "maint", "inval", "unknown", "future")

log = get_logger(__name__)


@dataclass(frozen=True)
class Machine:
    """A node of a partition."""

    name: str
    cores: int
    gpus: int
    state: str

    @property
    def is_up(self) -> bool:
        return not self.state.startswith(AWAY)


def check_partitions(tasks: Sequence[Task], file: str) -> None:
    """Refuse a partition that does not exist, or whose nodes are too few or too small. Nodes that are away are said.

    Where `sinfo` gives no answer, nothing is refused: `sbatch` decides.

    Raises:
        ConfigError: names the executor file, the stage and the partition.
    """
    nodes: dict[str, list[Machine]] = {}
    for task in tasks:
        partition = task.resources.partition
        try:
            if partition not in nodes:
                nodes[partition] = _machines(partition, file)
        except ServerError:
            return
        _check_task(task, nodes[partition], file)


def _check_task(task: Task, machines: Sequence[Machine], file: str) -> None:
    if not machines:
        return
    wanted, r = task.placement.nodes, task.resources
    cores = r.cpus_per_process * task.placement.processes
    gpus = r.gpus_per_node if r.request_gpus else 0
    fitting = [each for each in machines if each.cores >= cores and each.gpus >= gpus]
    where = f"partition {r.partition}"
    if len(fitting) < wanted:
        largest = max(machines, key=lambda each: (each.gpus, each.cores))
        raise ConfigError(
            f"{file}: stage '{task.name}' asks for {_count(wanted, 'node')} with {_count(cores, 'core')} and "
            f"{_count(gpus, 'GPU')} each, and {where} has {len(fitting)} such nodes of {len(machines)}, the largest "
            f"with {_count(largest.cores, 'core')} and {_count(largest.gpus, 'GPU')}; choose another "
            "partition, or fewer gpus_per_node or cpus_per_process"
        )
    away = [f"{each.name} {each.state}" for each in fitting if not each.is_up]
    if len(fitting) - len(away) < wanted:
        log.warning(
            "stage '%s': %s of %s that fit it are away (%s), so its job will wait for them",
            *(task.name, _count(len(away), "node"), where, ", ".join(away[:3])),
        )


def _machines(partition: str, file: str) -> list[Machine]:
    """The nodes of one partition, or of several with commas between them; empty if Slurm does not show them."""
    lines = ask_slurm("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%c|%G|%T")
    if not lines:
        known = [name.rstrip("*") for name in ask_slurm("sinfo", "--noheader", "--all", "--format=%P")]
        absent = [name for name in partition.split(",") if name not in known]
        if known and absent:
            raise ConfigError(
                f"{file}: partition={absent[0]}: Slurm has no such partition{suggest(absent[0], known)}"
            )
    found = {}
    for line in lines:
        name, cores, resources, state = line.split("|")
        gpus = sum(map(int, re.findall(r"\bgpu(?::[^:,(]+)?:(\d+)", resources)))
        found[name] = Machine(name, int(re.sub(r"\D", "", cores) or 0), gpus, state.rstrip("*~#!%$@^-"))
    return list(found.values())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
