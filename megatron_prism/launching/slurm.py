"""What Slurm knows about jobs: `squeue` for those in the queue, `sacct` for others, `scontrol` without accounting."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from megatron_prism.errors import ServerError
from megatron_prism.platform.console import get_logger

ENDED_BADLY = (
    *("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"),
    "PREEMPTED",
)
COMPLETED, UNKNOWN = "COMPLETED", "UNKNOWN"
# sbatch's words for what does not change by waiting.
NEVER = re.compile(
    "invalid account|invalid partition|invalid qos|invalid feature|invalid generic resource|reservation is invalid|"
    "time limit is invalid|node count specification|more processors requested|policy|memory specification|"
    r"\(inactive or drain\)|invalid --|unrecognized option|unknown option|permission denied|not permitted",
    re.IGNORECASE,
)
# Variables that win over the header of a script (sbatch(1), "input environment variables"), for what is in ours.
OVERRIDES = tuple(
    f"SBATCH_{name}"
    for name in (
        *(
            "ACCOUNT",
            "ARRAY_INX",
            "CONSTRAINT",
            "EXCLUSIVE",
            "GPUS",
            "GPUS_PER_NODE",
            "JOB_NAME",
            "NO_REQUEUE",
        ),
        *("OPEN_MODE", "OUTPUT", "PARTITION", "QOS", "REQUEUE", "SIGNAL", "TIMELIMIT"),
    )
)

log = get_logger(__name__)


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

    @property
    def can_go_on(self) -> bool:
        """Whether it runs or can still run: a job may stay in the queue although what it waits for has failed."""
        return not self.has_ended and self.state != UNKNOWN and self.reason != "DependencyNeverSatisfied"


def slurm_jobs(numbers: Sequence[str]) -> dict[str, SlurmJob]:
    """The jobs of these numbers; `UNKNOWN` for one that Slurm has forgotten."""
    wanted = [number for number in numbers if number]
    if not wanted:
        return {}
    found = {number: job for number, job in queue().items() if number in wanted}
    missing = [number for number in wanted if number not in found]
    if missing:
        found |= _from_accounting(missing)
    for number in wanted:
        if number not in found:
            found[number] = _from_controller(number)
    return found


def queue() -> dict[str, SlurmJob]:
    """This user's jobs in the queue, and those that have ended in the last minutes, by number."""
    found: dict[str, SlurmJob] = {}
    # One number that is gone makes `squeue --jobs` fail for all, so the user's queue is read.
    for line in ask_slurm(
        "squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i|%T|%M|%N|%r"
    ):
        number, state, elapsed, nodes, reason = line.split("|", 4)
        found[number] = SlurmJob(state, elapsed, nodes, "" if reason == "None" else reason)
    return found


def queued_scripts() -> dict[str, str]:
    """The numbers of this user's jobs, those of arrays without a place, by the paths of their scripts."""
    lines = ask_slurm("squeue", "--noheader", "--me", "--states=all", "--format=%F|%o")
    return {script: number for number, _, script in (line.partition("|") for line in lines)}


def _from_accounting(numbers: Sequence[str]) -> dict[str, SlurmJob]:
    # An array's tasks that have not started share one line, which is asked for by the number of the array.
    asked = dict.fromkeys(number.partition("_")[0] for number in numbers)
    command = (
        "sacct",
        "-n",
        "-P",
        "-X",
        "--format=JobID,State,Elapsed,NodeList",
        f"--jobs={','.join(asked)}",
    )
    try:
        lines = ask_slurm(*command)
    except ServerError:
        return {}
    return read_accounting(lines, numbers)


def read_accounting(lines: Sequence[str], numbers: Sequence[str]) -> dict[str, SlurmJob]:
    """The jobs of these numbers from the lines of sacct: "12|COMPLETED|00:01:00|n1", "12_3|...", "12_[0,4-6%2]|..."."""
    found: dict[str, SlurmJob] = {}
    for line in lines:
        number, state, elapsed, nodes = line.split("|")
        # "CANCELLED by 1000"
        job = SlurmJob(state.split(" ")[0], elapsed, nodes)
        found |= {each: job for each in _places(number) if each in numbers}
    return found


def _places(number: str) -> list[str]:
    array, bracket, places = number.partition("_[")
    if not bracket:
        return [number]
    ranges = (each.partition("-") for each in places.rstrip("]").partition("%")[0].split(","))
    return [
        f"{array}_{place}"
        for first, _, last in ranges
        if first.isdecimal()
        for place in range(int(first), int(last or first) + 1)
    ]


def _from_controller(number: str) -> SlurmJob:
    array, _, place = number.partition("_")
    if (values := _shown(number)) is not None:
        return SlurmJob(
            values.get("JobState", UNKNOWN), values.get("RunTime", ""), values.get("NodeList", "")
        )
    # A task that was cancelled before it started leaves no record, while its array has one.
    return SlurmJob("CANCELLED" if place and _shown(array) is not None else UNKNOWN)


def _shown(number: str) -> dict[str, str] | None:
    """What the controller has of a job; None if it has none of this number."""
    try:
        text = " ".join(ask_slurm("scontrol", "--oneliner", "show", "job", number))
    except ServerError as problem:
        # Anything else says nothing about the job, and the caller asks again.
        if not re.search("Invalid job id|not found", str(problem)):
            raise
        return None
    return dict(re.findall(r"(\w+)=(\S+)", text))


def cancel_jobs(numbers: Sequence[str]) -> None:
    """Cancel these jobs, of which some may have ended by now.

    Raises:
        ServerError: with Slurm's words.
    """
    try:
        ask_slurm("scancel", *numbers)
    except ServerError as problem:
        if "Invalid job id" not in str(problem) and "already completed" not in str(problem):
            raise


def refusal(script: str) -> str:
    """Why `sbatch` would never take this batch script, in its words; empty if it would, or if that is not certain.

    `sbatch --test-only` also says no when a job would only have to wait, for nodes that are down, for example.
    """
    try:
        ask_slurm("sbatch", "--test-only", stdin=script)
    except ServerError as problem:
        words = (
            str(problem)
            .removeprefix("sbatch: ")
            .replace("sbatch: error: ", "")
            .replace("allocation failure: ", "")
        )
        return words if NEVER.search(words) else ""
    return ""


@contextmanager
def without_overrides() -> Iterator[None]:
    """In this block, variables of the user do not win over what stands in the header of a script, as sbatch would."""
    taken = {name: os.environ.pop(name) for name in OVERRIDES if name in os.environ}
    if taken:
        log.warning("%s in the environment: what the executor file says is used", ", ".join(taken))
    try:
        yield
    finally:
        os.environ.update(taken)


def ask_slurm(*command: str, stdin: str | None = None) -> list[str]:
    """The lines that a command of Slurm prints.

    Raises:
        ServerError: with its words, if it fails, is not there, or does not answer for a minute.
    """
    try:
        ended = subprocess.run(
            command, input=stdin or "", capture_output=True, text=True, timeout=60, check=False
        )
    except FileNotFoundError:
        raise ServerError(
            f"{command[0]} is not on PATH; ask for the jobs on a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise ServerError(f"{command[0]} gave no answer for 60 s; Slurm's controller may be down") from None
    if ended.returncode != 0:
        said = ended.stderr.strip() or ended.stdout.strip()
        words = "; ".join(line.strip() for line in said.splitlines() if line.strip())
        words = words or f"exit code {ended.returncode}"
        raise ServerError(f"{command[0]}: {words}")
    return [line for line in ended.stdout.splitlines() if line.strip()]
