"""Evaluates the points of a landscape one after the other; each is kept as the folder of an evaluation.

The grading of a point goes on while the next one is sampled, because programs and mathematics are graded by other
processes. A point is finished when its by_problem.json exists, which is written last; a run that was killed goes on
with the completions that were kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_prism.analysis.landscape.engine import LandscapeEngine
from megatron_prism.analysis.landscape.points import Point
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.evaluation.generations import Earlier, remove_parts, write_identity
from megatron_prism.evaluation.grading import grade_suite
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.evaluation.replicas import Replicas, agreed
from megatron_prism.evaluation.sampling import Sampler
from megatron_prism.evaluation.stage import DETAILS, write_results
from megatron_prism.generation.engine import Progress, no_progress
from megatron_prism.platform.console import get_logger
from megatron_prism.verification.pool.grading_pool import GradingPool
from megatron_prism.verification.settings import GradingSettings

log = get_logger(__name__)


@dataclass(frozen=True)
class Scorer:
    """What the points of a landscape have in common.

    Attributes:
        points: the folder that has a folder for each point.
        plans: the suites, with the same problems, seeds and sampling for all points.
        grading: the settings of `pool`.
        earlier: folders of evaluations of the same run, whose completions are taken over where the identity is equal.
        details: more metrics of each point: the engine, the graders, how prompts are encoded.
    """

    points: Path
    plans: Sequence[SuitePlan]
    tokenizer: Tokenizer
    engine: LandscapeEngine
    replicas: Replicas
    pool: GradingPool
    grading: GradingSettings
    earlier: Sequence[Path]
    confidence: float
    details: Mapping[str, Any]

    def run(self, points: Mapping[Point, Mapping[str, Any]], progress: Progress = no_progress) -> None:
        """Evaluate the points that are not finished.

        Args:
            points: each with its identity: what decides its completions besides prompts and sampling.
            progress: called with numbers of completions.
        """
        completions = sum(plan.completions for plan in self.plans)
        # Rank 0 decides, because it alone writes scores.
        finished = agreed(
            [(self._folder(point) / DETAILS).is_file() for point in points] if self.replicas.leads else None
        )
        if any(finished):
            log.info("%d of %d points are kept", sum(finished), len(points))
        progress(completions * sum(finished))
        with _threads_beside(self.grading.workers), ThreadPoolExecutor(max_workers=1) as grader:
            pending: Future[None] | None = None
            for (point, identity), done in zip(points.items(), finished, strict=True):
                if done:
                    if self.replicas.leads:
                        # It may have been killed just before it did so itself.
                        remove_parts(self._folder(point))
                    continue
                self._sample(point, identity, progress)
                if pending is not None:
                    pending.result()
                pending = grader.submit(self._grade, point) if self.replicas.leads else None
            if pending is not None:
                pending.result()

    def _folder(self, point: Point) -> Path:
        return self.points / point.name

    def _sample(self, point: Point, identity: Mapping[str, Any], progress: Progress) -> None:
        folder = self._folder(point)
        if self.replicas.leads:
            folder.mkdir(parents=True, exist_ok=True)
            write_identity(folder, identity, self.plans)
        earlier = Earlier(folder, identity, self.earlier)
        sampler = Sampler(folder, earlier, self.tokenizer, partial(self.engine.at, point), self.replicas)
        sampler.run(self.plans, progress)

    def _grade(self, point: Point) -> None:
        folder = self._folder(point)
        sandbox = self.grading.sandbox
        results = [grade_suite(folder, plan, self.pool, sandbox) for plan in self.plans]
        scores = write_results(folder, results, self.confidence, self.details)
        remove_parts(folder)
        rates = (f"{suite} {100 * each['pass_rate']:.1f}%" for suite, each in scores["suites"].items())
        log.info("%s: %s", point.name, ", ".join(rates))


@contextmanager
def _threads_beside(processes: int) -> Iterator[None]:
    """Leave a core to each of these processes: torch's threads wait for the slowest of them, in a busy loop.

    On two cores that both were in use, four points took 15 s with one thread, and 71 s with two.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads, len(os.sched_getaffinity(0)) - processes)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
