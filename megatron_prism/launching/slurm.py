"""What Slurm knows about jobs: `squeue` for those in the queue, `sacct` for others, `scontrol` without accounting."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prism.errors import ServerError

ENDED_BADLY = (
    *("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"),
    "PREEMPTED",
)
COMPLETED, UNKNOWN = "COMPLETED", "UNKNOWN"


@dataclass(frozen=True)
class SlurmJob:
    """A job's state in Slurm's words, its time so far, its nodes, and why it waits."""

    state: str
    elapsed: str = ""
    nodes: str = ""
    reason: str = ""

    @property
    def has_failed(self) -> bool:
        return self.state in ENDED_BADLY

    @property
    def has_ended(self) -> bool:
        return self.has_failed or self.state == COMPLETED


def slurm_jobs(numbers: Sequence[str]) -> dict[str, SlurmJob]:
    """The jobs of these numbers; `UNKNOWN` for one that Slurm has forgotten."""
    wanted = [number for number in numbers if number]
    if not wanted:
        return {}
    found: dict[str, SlurmJob] = {}
    # One number that is gone makes `squeue --jobs` fail for all, so the user's queue is read.
    for line in _lines("squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i|%T|%M|%N|%r"):
        number, state, elapsed, nodes, reason = line.split("|", 4)
        if number in wanted:
            found[number] = SlurmJob(state, elapsed, nodes, "" if reason == "None" else reason)
    missing = [number for number in wanted if number not in found]
    if missing:
        found |= _from_accounting(missing)
    for number in wanted:
        if number not in found:
            found[number] = _from_controller(number)
    return found


def _from_accounting(numbers: Sequence[str]) -> dict[str, SlurmJob]:
    columns = "JobID,State,Elapsed,NodeList"
    try:
        lines = _lines(
            "sacct", "-n", "-P", "-X", "--array", f"--format={columns}", f"--jobs={','.join(numbers)}"
        )
    except ServerError:
        return {}
    found = {}
    for line in lines:
        number, state, elapsed, nodes = line.split("|")
        # "CANCELLED by 1000"
        found[number] = SlurmJob(state.split(" ")[0], elapsed, nodes)
    return found


def _from_controller(number: str) -> SlurmJob:
    try:
        text = " ".join(_lines("scontrol", "--oneliner", "show", "job", number))
    except ServerError:
        return SlurmJob(UNKNOWN)
    values = dict(re.findall(r"(\w+)=(\S+)", text))
    return SlurmJob(values.get("JobState", UNKNOWN), values.get("RunTime", ""), values.get("NodeList", ""))


def cancel_jobs(numbers: Sequence[str]) -> None:
    """Raises a ServerError with Slurm's words."""
    _lines("scancel", *numbers)


def _lines(*command: str) -> list[str]:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise ServerError(
            f"{command[0]} is not on PATH; ask for the jobs on a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise ServerError(f"{command[0]} gave no answer for 60 s; Slurm's controller may be down") from None
    if ended.returncode != 0:
        words = " ".join(ended.stderr.split()) or f"exit code {ended.returncode}"
        raise ServerError(f"{command[0]}: {words}")
    return [line for line in ended.stdout.splitlines() if line.strip()]
