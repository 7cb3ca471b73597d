"""Which stages may start now, and how long the rest will take: plain functions over names and numbers."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A stage to be made.

    Attributes:
        needs: names of the stages whose artifacts it takes.
        processes: how many it runs on, at least 1.
    """

    name: str
    needs: frozenset[str]
    processes: int = 1


def startable(waiting: Sequence[Job], done: Collection[str], free: int, total: int) -> list[Job]:
    """The jobs to start now, in order of `waiting`, on `free` of `total` processes.

    A job that is ready but does not fit keeps its place: nothing behind it starts before it, or small jobs could put
    it off for ever. A job that needs more than `total` processes starts alone.
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
    running: Mapping[str, float],
    seconds: Mapping[str, float],
    processes: Mapping[str, int],
    total: int,
) -> float:
    """Seconds until the last job ends, if each takes what `seconds` says and they start as `startable` lets them.

    Args:
        running: seconds still to go, by name, of the jobs under way.
        processes: how many processes each of the running jobs occupies.
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
