"""The progress of `prism run`: a line per stage, the stages' log lines, the remaining time, and scores so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn

from megatron_prism.errors import PrismError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.execution import Observer, jobs_of
from megatron_prism.pipeline.node import Node
from megatron_prism.pipeline.schedule import seconds_left
from megatron_prism.platform.console import console

# Without a terminal there is no live line; instead a status line is printed at this interval.
QUIET_SECONDS = 60.0
# Shorter stages are too noisy to estimate the speed of the machine.
TELLING_SECONDS = 5.0


class Estimate:
    """The remaining time of a run, from expected times scaled by how long finished stages took.

    Args:
        nodes: all stages of the run.
        processes: how many processes run stages in parallel.
        expected: roughly how many seconds each stage takes, by name; if one is missing, there is no estimate.
    """

    def __init__(self, nodes: Sequence[Node], processes: int, expected: Mapping[str, float]) -> None:
        self.jobs = {job.name: job for job in jobs_of(nodes)}
        self.processes, self.expected = processes, expected
        self._known = all(name in expected for name in self.jobs)
        self._took = self._should_have_taken = 0.0

    def done(self, name: str, seconds: float) -> None:
        """Record that stage `name` took `seconds`."""
        if self.expected.get(name, 0.0) >= TELLING_SECONDS:
            self._took += seconds
            self._should_have_taken += self.expected[name]

    def seconds(self, waiting: Collection[str], running: Mapping[str, float]) -> float | None:
        """Seconds until the last stage ends, or None without an estimate.

        Args:
            running: how many seconds each running stage has run so far.
        """
        if not self._known:
            return None
        scale = self._took / self._should_have_taken if self._should_have_taken else 1.0
        still = {name: max(1.0, self.expected[name] * scale - ran) for name, ran in running.items()}
        return seconds_left(
            [job for name, job in self.jobs.items() if name in waiting],
            running=still,
            seconds={name: self.expected[name] * scale for name in waiting},
            processes={name: self.jobs[name].processes for name in running},
            total=self.processes,
        )


class RunProgress(Observer):
    """Prints the progress of a run. Use `shown`, which draws and removes the live line.

    Attributes:
        events: the last event of each stage, "done" or "skipped".
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        estimate: Estimate,
        evaluated: Callable[[Mapping[str, Artifact]], None],
    ) -> None:
        self.events: dict[str, str] = {}
        self._waiting, self._total = [node.name for node in nodes], len(nodes)
        self._running: dict[str, float] = {}
        self._estimate, self._evaluated = estimate, evaluated
        self._artifacts: dict[str, Artifact] = {}
        self._last_line = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.completed}/{task.total} stages {task.description}"),
            console=console,
            transient=True,
        )
        self._bar_task = self._bar.add_task("", total=self._total)

    @contextmanager
    def shown(self, live: bool) -> Iterator[RunProgress]:
        """Show a live line at the bottom of a terminal, if `live`."""
        if not (live and console.is_terminal):
            yield self
            return
        with self._bar:
            yield self

    def skipped(self, node: Node, artifact: Artifact) -> None:
        self._waiting.remove(node.name)
        self._ended(node, artifact, "skipped")
        self._line(node.name, f"skipped, already done (took {artifact.receipt.wall_seconds:.1f} s)")

    def started(self, node: Node) -> None:
        self._waiting.remove(node.name)
        self._running[node.name] = time.monotonic()
        count = node.stage.world_size
        processes = f"{count} process{'es' if count > 1 else ''}"
        self._line(node.name, f"start ({node.stage.kind}, {processes}){self._left()}")

    def logged(self, name: str, text: str) -> None:
        self._print(f"[{time.strftime('%H:%M:%S')}] {name} | {text}")

    def done(self, node: Node, artifact: Artifact) -> None:
        del self._running[node.name]
        self._estimate.done(node.name, artifact.receipt.wall_seconds)
        self._ended(node, artifact, "done")
        self._line(node.name, f"done in {artifact.receipt.wall_seconds:.1f} s{self._left()}")
        if artifact.kind == "evaluation":
            self._evaluated(self._artifacts)

    def failed(self, node: Node, problem: BaseException, running: Sequence[str]) -> None:
        self._running.pop(node.name, None)
        reason = f": {problem}" if isinstance(problem, PrismError) else ""
        waits = f"; waiting for {', '.join(running)} to end" if running else ""
        self._line(node.name, f"failed{reason}{waits}")

    def tick(self) -> None:
        running = ", ".join(self._running)
        self._bar.update(self._bar_task, completed=len(self.events), description=f"| {running}{self._left()}")
        if not console.is_terminal and time.monotonic() - self._last_line > QUIET_SECONDS:
            self._print(f"[{len(self.events)}/{self._total}] running: {running}{self._left()}")

    def _ended(self, node: Node, artifact: Artifact, event: str) -> None:
        self.events[node.name] = event
        self._artifacts[node.name] = artifact

    def _left(self) -> str:
        now = time.monotonic()
        seconds = self._estimate.seconds(
            self._waiting, {name: now - began for name, began in self._running.items()}
        )
        return (
            "" if seconds is None or not (self._waiting or self._running) else f" | {minutes(seconds)} left"
        )

    def _line(self, name: str, text: str) -> None:
        self._print(f"[{len(self.events) + len(self._running)}/{self._total}] {name}: {text}")

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def minutes(seconds: float) -> str:
    """'about 4 min', or below 90 seconds 'about 40 s', rounded to ten seconds."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    return f"about {seconds / 60:.0f} min"
