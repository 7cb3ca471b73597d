"""The log files of a submitted task, as they grow."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_prism.launching.record import SubmittedTask

ERROR = "error: "
# Beginnings of lines in which Slurm says that it ends the processes of all nodes, after one has failed.
SLURMS = re.compile(r"(srun|slurmstepd[\w.-]*|sbatch): $")


def log_files(task: SubmittedTask) -> list[Path]:
    """The log files, oldest first; empty before the job has started.

    Of Slurm's, those of the batch script (what the shell did) are left out once the stage itself has written.
    """
    return stage_logs(task) or _all_files(task)


def stage_logs(task: SubmittedTask) -> list[Path]:
    """Those that the stage itself has written, oldest first."""
    return [path for path in _all_files(task) if not path.name.startswith("sbatch_")]


def _all_files(task: SubmittedTask) -> list[Path]:
    if not task.logs:
        return []
    return sorted(map(Path, glob.glob(task.logs, recursive=True)), key=lambda path: path.stat().st_mtime)


def last_error(files: Sequence[Path]) -> str:
    """The last line of ours that says what went wrong, or else the last of Slurm's; empty if there is none."""
    slurms = ""
    for file in reversed(files):
        for line in reversed(file.read_text(errors="replace").splitlines()):
            before, mark, said = line.partition(ERROR)
            if mark and not SLURMS.search(before):
                return said.strip()
            slurms = slurms or said.strip()
    return slurms


def tail(files: Sequence[Path], lines: int) -> list[str]:
    """The last lines of the newest files."""
    kept: list[str] = []
    for file in reversed(files):
        kept = file.read_text(errors="replace").splitlines()[-(lines - len(kept)) :] + kept
        if len(kept) >= lines:
            break
    return kept


class Follower:
    """Gives the lines that are new since it was last asked."""

    def __init__(self) -> None:
        self._read: dict[Path, int] = {}

    def new_lines(self, files: Sequence[Path]) -> Iterator[str]:
        """Complete lines only, file by file."""
        for file in files:
            start = self._read.get(file, 0)
            with file.open("rb") as opened:
                opened.seek(start)
                for line in opened:
                    if not line.endswith(b"\n"):
                        break
                    start += len(line)
                    yield line.decode(errors="replace").rstrip()
            self._read[file] = start
