"""Which stages can start now, and an estimate of the remaining time; plain functions over names and numbers."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A stage to run.

    Attributes:
        needs: names of the stages whose artifacts it reads.
        processes: how many processes it runs on, at least 1.
    """

    name: str
    needs: frozenset[str]
    processes: int = 1


def startable(waiting: Sequence[Job], done: Collection[str], free: int, total: int) -> list[Job]:
    """The jobs to start now, in order of `waiting`, on `free` of `total` processes.

    If a job is ready but does not fit, no later job starts before it; otherwise small jobs could delay it indefinitely.
    A job that needs more than `total` processes runs alone.
    """
    chosen: list[Job] = []
    for job in waiting:
        if not job.needs <= set(done):
            continue
        size = min(job.processes, total)
        if size > free:
            break
        chosen.append(job)
        free -= size
    return chosen


def seconds_left(
    waiting: Sequence[Job],
    *,
    running: Mapping[str, float],
    seconds: Mapping[str, float],
    processes: Mapping[str, int],
    total: int,
) -> float:
    """Seconds until the last job ends, when jobs start by the rule of `startable`.

    Args:
        running: remaining seconds of the running jobs, by name.
        seconds: how long each waiting job takes, by name.
        processes: how many processes each running job occupies.
        total: how many processes there are.
    """
    names = {job.name for job in waiting} | set(running)
    done = {need for job in waiting for need in job.needs} - names
    ends = [(left, name) for name, left in running.items()]
    heapq.heapify(ends)
    sizes = dict(processes) | {job.name: min(job.processes, total) for job in waiting}
    free = total - sum(min(processes[name], total) for name in running)
    left, clock = list(waiting), 0.0
    while True:
        for job in startable(left, done, free, total):
            left.remove(job)
            free -= sizes[job.name]
            heapq.heappush(ends, (clock + seconds[job.name], job.name))
        if not ends:
            return clock
        clock, name = heapq.heappop(ends)
        free += min(sizes[name], total)
        done.add(name)
