"""Stages that do not depend on each other as one array of Slurm: one entry in the queue, with a limit on how many run.

`array: N` in the executor file asks for it. Stages that then share an array wait for the same jobs, so none of them can
depend on another.

`python -m megatron_prism.launching.array ARRAY.json` is what a node does: it runs the job whose place in the file is
the number of the array's task.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_prism.launching.job import AGAIN, again_marker, main
from megatron_prism.launching.task import Task
from megatron_prism.pipeline.artifact import write_json

TASK_ID = "SLURM_ARRAY_TASK_ID"


def with_arrays(tasks: Sequence[Task]) -> list[Task]:
    """The tasks, of which those that can share an array have become one task with `members`; their order is kept.

    Tasks share an array if they wait for the same tasks, and have equal resources with `array` and equal placements. An
    array of one task stays a task.
    """
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        alike = repr((sorted(task.after), sorted(task.waits_for), task.resources, task.placement, task.code))
        groups.setdefault(alike if task.resources.array else task.name, []).append(task)
    # A group stands at the place of its first task: what it waits for stands before that.
    made = [_array(group) if len(group) > 1 else group[0] for group in groups.values()]
    owner = {member.name: task.name for task in made for member in task.members or (task,)}
    return [replace(task, after=tuple(dict.fromkeys(owner[name] for name in task.after))) for task in made]


def _array(members: Sequence[Task]) -> Task:
    files = [member.file for member in members]
    name = hashlib.sha256("\n".join(file.name for file in files).encode()).hexdigest()[:12]
    first = members[0]
    return replace(
        first,
        name=f"{first.name}-array",
        file=first.file.with_name(f"array-{name}.json"),
        members=tuple(members),
    )


def write_array(task: Task) -> None:
    """Write the file of an array: the files of its jobs, in order."""
    write_json(task.file, [member.file.name for member in task.members])


def array_option(task: Task) -> str | None:
    """Slurm's option `--array`: the numbers of the tasks, and how many may run at once."""
    return f"0-{len(task.members) - 1}%{task.resources.array}" if task.members else None


def marker_word(task: Task) -> str:
    """The file that a job leaves for its batch script, as a word of the shell."""
    if not task.members:
        return shlex.quote(str(again_marker(task.file)))
    return f"{shlex.quote(str(task.file.with_suffix('')))}.${TASK_ID}{AGAIN}"


def run_member(array: Path, place: int) -> int:
    """Run the job at this place of an array; its word for the batch script goes where this array's script looks."""
    file = array.with_name(json.loads(array.read_text())[place])
    marker = array.with_name(f"{array.stem}.{place}{AGAIN}")
    marker.unlink(missing_ok=True)
    code = main(file)
    # Only the first node leaves one.
    if again_marker(file).exists() and os.environ.get("SLURM_NODEID", "0") == "0":
        os.replace(again_marker(file), marker)
    return code


# Libraries may start processes that import this file again; without the guard they would run the job.
if __name__ == "__main__":
    sys.exit(run_member(Path(sys.argv[1]).resolve(), int(os.environ[TASK_ID])))
