"""Whether the folder of a run is fit for it: its file system, space, locks, and clocks."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_prism.platform.check import Check

PROBE = Path(__file__).with_name("folder_probe.py")
SECONDS = 10.0
NODES_SECONDS = 60.0
# Seconds. Less is the resolution of coarse file times and the delay with which srun starts its processes.
FILE_SKEW, NODE_SKEW = 2.0, 10.0
LITTLE_SPACE = 100 * 2**30
ON_ALL_NODES = "run folder on all nodes"

# Types of file systems in /proc/self/mountinfo (a FUSE type stands after "fuse.").
SHARED = re.compile(
    "nfs4?|lustre|gpfs|beegfs|ceph|wekafs|cifs|smb3|glusterfs|panfs|pvfs2|afs|9p|virtiofs|sshfs|gcsfuse|s3fs|juicefs|"
    "goofys|blobfuse2|mount-s3|dfuse|orangefs|quobyte|vast"
)
LOCAL = re.compile("ext[234]|xfs|btrfs|zfs|tmpfs|ramfs|overlay|f2fs|fuseblk|bcachefs")


def folder_checks(run_dir: Path) -> list[Check]:
    """The checks of a run's folder. If it does not exist yet, those of the nearest folder above it that does."""
    folder = run_dir.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = run_probe(folder)
    kind = file_system(folder)
    if "problem" in found:
        remedy = "Give a folder that this user may write, on a disk that works: --run-dir DIR."
        return [
            Check(
                "run folder", False, f"{folder} ({kind}): {found['problem']}", "every run", remedy, vital=True
            )
        ]
    free, total = found["free"] / 2**30, found["total"] / 2**30
    nodes = node_checks(folder)
    checks = [
        Check(
            "run folder",
            free > 1,
            f"{folder} ({kind}): {free:,.0f} of {total:,.0f} GiB free",
            "checkpoints and artifacts; `prism plan` says how much a run writes",
            ""
            if found["free"] > LITTLE_SPACE
            else "A checkpoint of an 8B model with optimizer takes about 100 GiB.",
            vital=True,
        ),
        _shared_folder(kind, nodes),
        Check(
            "flock",
            found["flock"] == "works",
            f"{found['flock']} between two processes",
            "two runs never write one artifact",
            "Mount the file system with locks (Lustre: -o flock; NFS: without nolock). Until then a file with a "
            "heartbeat decides, and a crashed run blocks its artifact for 45 s.",
        ),
        Check(
            "file server's clock",
            abs(found["skew"]) < FILE_SKEW,
            f"{found['skew']:+.1f} s against this machine's",
            "times in logs; whether a corpus has changed",
            "Run a time service (chrony) on this machine and on the file server.",
        ),
    ]
    return checks + nodes


def _shared_folder(kind: str, nodes: list[Check]) -> Check:
    """What the nodes of this job see counts; without several of them, the type of the file system."""
    seen = next((check for check in nodes if check.name == ON_ALL_NODES), None)
    of_network = is_shared(kind)
    detail = {True: "a network file system", False: "local to this machine", None: "type unknown"}[of_network]
    if seen:
        hint = "" if of_network or not seen.found else "; write shared_run_dir: true into the executor file"
        detail = f"{seen.detail}{hint}"
    return Check(
        "shared folder",
        (seen.found if seen else of_network) is True,
        f"{detail} ({kind})",
        "jobs on several nodes: all must see the run folder",
        "For more than one node, put --run-dir on the cluster's shared file system.",
    )


def run_probe(folder: Path) -> dict[str, Any]:
    """What folder_probe.py finds, or `problem` if it does not answer in time."""
    child = subprocess.Popen(
        [sys.executable, "-S", "-E", str(PROBE), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        said, _ = child.communicate(timeout=SECONDS)
        return json.loads(said)
    except subprocess.TimeoutExpired:
        # It may be blocked in the kernel until the file server answers, so nobody waits for its end.
        child.kill()
        return {"problem": f"the file system did not answer within {SECONDS:.0f} s"}
    except json.JSONDecodeError:
        return {"problem": "the file system could not be probed"}


def node_checks(folder: Path) -> list[Check]:
    """In a Slurm job with several nodes: whether all see the folder and its locks, and whether their clocks agree."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
    if nodes < 2:
        return []
    with tempfile.NamedTemporaryFile(prefix=".prism-doctor-", dir=folder) as token:
        with suppress(OSError):
            fcntl.flock(token, fcntl.LOCK_EX | fcntl.LOCK_NB)
        command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
        command += [sys.executable, "-S", "-E", str(PROBE), str(folder), Path(token.name).name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=NODES_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as problem:
            return [
                Check("nodes", False, f"srun: {problem}", "jobs on several nodes", "Ask the cluster's admin.")
            ]
    try:
        seen = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    except json.JSONDecodeError:
        seen = []
    if len(seen) < nodes:
        said = done.stderr.strip().splitlines()
        detail = f"{len(seen)} of {nodes} nodes answered{': ' + said[-1] if said else ''}"
        return [
            Check(
                "nodes", False, detail, "jobs on several nodes", f"Is {sys.executable} there on every node?"
            )
        ]
    return describe_nodes(folder, seen)


def describe_nodes(folder: Path, seen: list[dict[str, Any]]) -> list[Check]:
    blind = sorted(str(node["host"]) for node in seen if not node["sees"])
    unlocked = sorted(str(node["host"]) for node in seen if node["sees"] and node["flock"] != "held")
    apart = max(node["time"] for node in seen) - min(node["time"] for node in seen)
    return [
        Check(
            ON_ALL_NODES,
            not blind,
            f"not seen by {', '.join(blind)}" if blind else f"seen by {len(seen)} nodes",
            "jobs on several nodes",
            f"{folder} must be the same folder on every node: use the cluster's shared file system.",
        ),
        Check(
            "flock between nodes",
            not unlocked and not blind,
            f"no effect on {', '.join(unlocked)}" if unlocked else f"works on {len(seen) - len(blind)} nodes",
            "two jobs never write one artifact",
            "Mount the file system with locks that reach all nodes (Lustre: -o flock, not -o localflock).",
        ),
        Check(
            "clocks of the nodes",
            apart < NODE_SKEW,
            f"at most {apart:.1f} s apart, with the start of the processes",
            "times in logs; munge refuses messages more than 5 minutes old",
            "Run a time service (chrony) on every node.",
        ),
    ]


def is_shared(kind: str) -> bool | None:
    """Whether other machines may see a file system of this type; None for an unknown type."""
    name = kind.removeprefix("fuse.")
    return True if SHARED.fullmatch(name) else False if LOCAL.fullmatch(name) else None


def file_system(folder: Path, mounts: str | None = None) -> str:
    """The type of the file system that holds the folder, from the kernel's list of mounts (`proc_pid_mountinfo(5)`)."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return "unknown"
    best, kind = -1, "unknown"
    path = folder.resolve()
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        # Spaces and backslashes of a path are written as octal numbers.
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields.split()[4])
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), rest.split()[0]
    return kind
