"""The stage that scores a trained model on held-out problem suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.generations import Earlier, remove_parts, write_identity
from megatron_prism.evaluation.grading import grade_suite
from megatron_prism.evaluation.plan import SuitePlan, SuiteSampling, chosen_suites, read_plan
from megatron_prism.evaluation.replicas import check_layout, open_replicas
from megatron_prism.evaluation.sampling import Sampler
from megatron_prism.evaluation.scores import write_scores
from megatron_prism.evaluation.suite import SuiteResult
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import positive
from megatron_prism.pipeline.stage import Stage, tuning
from megatron_prism.platform.console import get_logger, is_rank_zero, progress_bar
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.verification.grade import GRADER_VERSION, grader_versions
from megatron_prism.verification.settings import GradingSettings

# suite -> problem -> pass@k, majority@k and the number of different answers.
DETAILS = "by_problem.json"

log = get_logger(__name__)


@dataclass
class Evaluate(Stage):
    """Scores `model` on suites of the `corpus`; inputs: "model" (unless a server has it), "tokenizer", "corpus".

    Every completion is kept (evaluation/generations.py): an interrupted stage goes on, and completions of an earlier
    evaluation of the same run are taken over, so that adding samples generates only these, and a new version of the
    grader none.

    Fields:
        suites: names of files in the corpus's `problems/`; none: all of them.
        samples_per_problem: completions per problem; None: as the suite says, else 1. With more than one the interval
            is clustered by problem.
        limit: number of problems per suite, chosen by the hash of their ids; None: all.
        engine: the engine; with `openai`, the model behind a server is scored.
        sampling: how completions are sampled, where the suite is to be overruled.
        batch_size: maximum number of completions that engine 'megatron' or 'hf' decodes together.
        parallel: the layout of engine 'megatron'; the replicas of data parallelism share the completions.
        grading: the grading processes, their limits, and how programs that the model wrote are isolated.
        confidence: coverage of the intervals.
    """

    kind: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 4  # version 3 kept its samples in samples.jsonl.zst
    resumable: ClassVar[bool] = True

    suites: list[str] = field(default_factory=list)
    samples_per_problem: int | None = None
    limit: int | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SuiteSampling = field(default_factory=SuiteSampling)
    batch_size: int = tuning(32)
    parallel: ParallelConfig = tuning(default_factory=ParallelConfig)
    grading: GradingSettings = field(default_factory=lambda: GradingSettings(workers=1))
    confidence: float = 0.95

    def __post_init__(self) -> None:
        positive(self, "batch_size")
        for name in ("samples_per_problem", "limit"):
            if getattr(self, name) is not None:
                positive(self, name)
        if len(set(self.suites)) != len(self.suites):
            raise ConfigError(f"suites={self.suites}: a suite occurs twice")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence={self.confidence}: must be between 0 and 1, for example 0.95")
        check_layout(self.parallel, self.engine.name)

    @property
    def world_size(self) -> int:
        return self.parallel.world_size

    def identity(self) -> dict[str, Any]:
        """Includes the version of the grader, so that a new one grades the kept completions again."""
        return super().identity() | {"grader": GRADER_VERSION}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        corpus = inputs["corpus"].path
        plans = [
            read_plan(corpus, suite, self.sampling, samples=self.samples_per_problem, limit=self.limit)
            for suite in chosen_suites(corpus, self.suites)
        ]
        kinds = self.grading.check_kinds(problem for plan in plans for problem in plan.problems)
        text = self.engine.describe(inputs)
        self._sample(plans, inputs, out)
        if not is_rank_zero():
            return {}
        results = self._grade(plans, out)
        remove_parts(out)
        versions = grader_versions(kinds, self.grading.sandbox)
        details = {"engine": self.engine.name, "grader": versions, "text": text}
        scores = write_results(out, results, self.confidence, details)
        for suite, values in scores["suites"].items():
            _log_score(suite, values)
        return scores

    def _sample(self, plans: list[SuitePlan], inputs: Mapping[str, Artifact], out: Path) -> None:
        identity = {
            "model": inputs["model"].fingerprint if "model" in inputs else None,
            "tokenizer": inputs["tokenizer"].fingerprint,
            "engine": self.engine.identity(),
        }
        if is_rank_zero():
            write_identity(out, identity, plans)
        opened = partial(
            self.engine.open,
            model=inputs["model"].path if "model" in inputs else None,
            tokenizer=inputs["tokenizer"].path,
            batch_size=self.batch_size,
            work=out,
            parallel=self.parallel,
        )
        tokenizer = self.engine.tokenizer(inputs["tokenizer"].path)
        with (
            open_replicas(self.parallel) as replicas,
            progress_bar("sampling answers", sum(plan.completions for plan in plans)) as bar,
        ):
            sampler = Sampler(out, Earlier(out, identity), tokenizer, opened, replicas)
            sampler.run(plans, lambda finished: bar.advance(bar.task_ids[0], finished))

    def _grade(self, plans: list[SuitePlan], out: Path) -> list[SuiteResult]:
        total = sum(plan.completions for plan in plans)
        with self.grading.open_pool() as pool, progress_bar("grading answers", total) as bar:

            def advance(finished: int) -> None:
                bar.advance(bar.task_ids[0], finished)

            return [grade_suite(out, plan, pool, self.grading.sandbox, progress=advance) for plan in plans]


def write_results(
    out: Path, results: Sequence[SuiteResult], confidence: float, details: Mapping[str, Any]
) -> dict[str, Any]:
    """Write scores.json, problems.json and by_problem.json under `out`; returns the scores, the metrics of the receipt.

    Args:
        details: more metrics: the engine, how prompts were encoded, the versions of the graders.
    """
    scores = {
        "suites": {result.plan.name: result.metrics(confidence) for result in results},
        "sources": {result.plan.name: dict(result.plan.facts) for result in results if result.plan.facts},
        **details,
    }
    write_scores(out, scores, {result.plan.name: result.by_problem() for result in results})
    write_json(out / DETAILS, {result.plan.name: result.details for result in results})
    return scores


def _log_score(suite: str, values: Mapping[str, Any]) -> None:
    log.info(
        "%s: %.1f%% (%.1f to %.1f) on %d problems",
        suite,
        100 * values["pass_rate"],
        100 * values["low"],
        100 * values["high"],
        values["problems"],
    )
    counts = values["outcomes"]
    named = {"ungradable": "could not be graded", "empty": "are empty", "refused": "could not be made"}
    without = [f"{counts[key]:,} {what}" for key, what in named.items() if counts[key]]
    if without:
        total = f"{values['samples']:,}"
        log.warning("%s: of %s completions %s; they count as not right", suite, total, ", ".join(without))
