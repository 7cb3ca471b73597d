"""What a machine of a cluster has: Slurm, containers, the network between nodes, and the system's limits.

Every question to a program has a time limit, because a scheduler that is down lets its clients wait for minutes.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

from megatron_prism.platform.check import Check

SECONDS = 10.0
INFINIBAND = Path("/sys/class/infiniband")
# Every rank opens some hundred files: sockets to the other ranks, checkpoint shards, datasets.
OPEN_FILES = 4096
SHARED_MEMORY = 2**30


def cluster_checks() -> list[Check]:
    return [
        *slurm_checks(),
        _munge(),
        *container_checks(),
        infiniband(),
        _open_files(),
        shared_memory(),
    ]


def slurm_checks() -> list[Check]:
    """Slurm's commands, and whether its controller answers with partitions."""
    unlocks = "jobs on a cluster: prism run --executor FILE"
    if shutil.which("sbatch") is None:
        remedy = "Run this on a login node of the cluster; some need `module load slurm` first."
        return [Check("Slurm", False, "no sbatch on PATH", unlocks, remedy)]
    version, _ = ask("sbatch", "--version")
    checks = [Check("Slurm", True, version or "sbatch is on PATH", unlocks)]
    said, problem = ask("sinfo", "--noheader", "--format=%P|%a|%D|%T|%G|%l")
    partitions = read_partitions(said)
    detail = "; ".join(partitions) if partitions else problem or "sinfo lists none"
    remedy = "Is slurmctld running, and does slurm.conf name it? `scontrol ping` says more."
    return [
        *checks,
        Check("Slurm partitions", bool(partitions), detail, "`partition:` in an executor", remedy),
    ]


def read_partitions(said: str) -> list[str]:
    """One text per partition from sinfo's lines of `partition|available|nodes|state|gres|limit`."""
    found: dict[str, tuple[str, str, dict[str, int]]] = {}
    for line in said.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 6 or not fields[2].isdigit():
            continue
        name, available, nodes, state, gres, limit = fields
        resources = "" if gres in ("(null)", "") else f", {gres}"
        _, _, states = found.setdefault(name, (available, f"{resources}, limit {limit}", {}))
        states[state.rstrip("*~#!%$@^-")] = states.get(state.rstrip("*~#!%$@^-"), 0) + int(nodes)
    return [
        f"{name} ({', '.join(f'{count} {state}' for state, count in states.items())}{rest}"
        f"{'' if available == 'up' else ', ' + available})"
        for name, (available, rest, states) in found.items()
    ]


def _munge() -> Check:
    unlocks = "Slurm's commands: they are signed with it"
    if shutil.which("munge") is None or shutil.which("unmunge") is None:
        return Check("munge", False, "no munge on PATH", unlocks, "Needed only where Slurm is.")
    socket = munge_socket(ask("scontrol", "show", "config")[0])
    where = ("--socket", socket) if socket else ()
    token, problem = ask("munge", "-n", *where)
    if token:
        said, problem = ask("unmunge", *where, stdin=token)
        if "Success" in said:
            return Check("munge", True, "a message was signed and read", unlocks)
    remedy = "Start munged; its key and the clock must be the same on all machines of the cluster."
    return Check("munge", False, problem or "a signed message could not be read", unlocks, remedy)


def munge_socket(configuration: str) -> str:
    """The socket that Slurm's configuration names (`AuthInfo`); empty for munge's own default."""
    found = re.search(r"^AuthInfo\s*=.*?\bsocket=([^,\s]+)", configuration, re.MULTILINE)
    return found[1] if found else ""


def container_checks() -> list[Check]:
    """The programs that run a container image: pyxis with enroot in Slurm, Docker, Apptainer."""
    enroot, problem = ask("enroot", "version")
    pyxis = "--container-image" in ask("srun", "--help")[0]
    detail = f"enroot {enroot or 'missing'}, pyxis {'in srun' if pyxis else 'missing'}"
    checks = [
        Check(
            "enroot and pyxis",
            bool(enroot) and pyxis,
            detail,
            "`container_image:` of a Slurm executor",
            "Without them leave out container_image, and use an environment on the shared file system.",
        )
    ]
    server, problem = ask("docker", "version", "--format", "{{.Server.Version}}")
    remedy = "Start the daemon, and be in the group docker; only the docker executor needs it."
    checks.append(
        Check("Docker", bool(server), f"server {server}" if server else problem, "kind: docker", remedy)
    )
    return checks


def infiniband(devices: Path = INFINIBAND) -> Check:
    """RDMA devices with an active port, their speed, and whether a GPU may use them without the CPU."""
    active: list[str] = []
    other: list[str] = []
    for port in sorted(devices.glob("*/ports/*")):
        name = f"{port.parents[1].name}:{port.name}"
        link = " ".join(filter(None, (_read(port / "link_layer"), _read(port / "rate"))))
        (active if "ACTIVE" in _read(port / "state") else other).append(f"{name} {link}".strip())
    detail = ", ".join(active) or "none"
    if other:
        detail += f"; not active: {', '.join(other)}"
    if active:
        peer = Path("/sys/module/nvidia_peermem").exists()
        detail += "; GPUDirect (nvidia_peermem) is loaded" if peer else "; nvidia_peermem is not loaded"
    if os.environ.get("NCCL_IB_DISABLE", "0") not in ("0", ""):
        detail += "; NCCL_IB_DISABLE turns it off"
    remedy = "NCCL uses TCP sockets, and training on several nodes waits for the network: load the driver (ibstat)."
    return Check("InfiniBand/RDMA", bool(active), detail, "fast collectives between nodes", remedy)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = ["unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}" for limit in (soft, hard)]
    return Check(
        "open files",
        soft == resource.RLIM_INFINITY or soft >= OPEN_FILES,
        f"{shown[0]} (may be raised to {shown[1]})",
        "sockets and shards of many ranks",
        f"Raise the limit: ulimit -n {OPEN_FILES * 16}; for Slurm: LimitNOFILE of slurmd's service.",
    )


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Space in shared memory, which NCCL and loaders of data use between the processes of one machine."""
    remedy = "In a container: --shm-size 16g, or --ipc=host."
    unlocks = "messages between the ranks of one machine"
    try:
        space = os.statvfs(folder)
    except OSError as problem:
        return Check("shared memory", False, f"{folder}: {problem.strerror}", unlocks, remedy)
    free = space.f_bavail * space.f_frsize
    return Check("shared memory", free >= SHARED_MEMORY, f"{free / 2**30:.1f} GiB free", unlocks, remedy)


def ask(*command: str, stdin: str = "") -> tuple[str, str]:
    """A program's standard output, and, if it failed, one line on why."""
    if shutil.which(command[0]) is None:
        return "", f"no {command[0]} on PATH"
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} did not answer within {SECONDS:.0f} s"
    except OSError as problem:
        return "", f"{command[0]}: {problem.strerror}"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return "", said[0] if said else f"{command[0]} ended with {done.returncode}"
    return done.stdout.strip(), ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
