"""The stage that scores a trained model on held-out problem suites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import ArtifactError, ConfigError, DataError
from megatron_prism.evaluation.suite import SuiteResult, evaluate
from megatron_prism.generation.engine import Engine, SamplingParams
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import positive
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.pipeline.json_text import read_object, read_records
from megatron_prism.pipeline.stage import Stage, tuning
from megatron_prism.platform.console import get_logger, progress_bar
from megatron_prism.verification.grade import grader_versions
from megatron_prism.verification.pool.grading_pool import GradingPool
from megatron_prism.verification.problems import read_suite
from megatron_prism.verification.settings import GradingSettings

SCORES = "scores.json"
SAMPLES = "samples.jsonl.zst"
# suite -> problem -> how many of its samples are right, and how many it has: what comparisons need.
PROBLEMS = "problems.json"

log = get_logger(__name__)


@dataclass
class Evaluate(Stage):
    """Scores `model` on suites of the `corpus`; inputs: "model" (unless a server has it), "tokenizer", "corpus".

    Fields:
        suites: names of files in the corpus's `problems/`.
        samples_per_problem: completions per problem; with more than one the interval is clustered by problem.
        limit: number of problems per suite, chosen by the hash of their ids; None: all.
        engine: the engine; with `openai`, the model behind a server is scored, and finished answers are kept if the
            server fails.
        sampling: how completions are sampled; `sampling.stop` lists the strings that end one, by default none.
        batch_size: maximum number of completions that engine 'megatron' decodes together.
        grading: the grading processes, their limits, and how programs that the model wrote are isolated.
        confidence: coverage of the intervals.
    """

    kind: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 3  # version 1 of the grader gave other verdicts; version 2 had other intervals
    resumable: ClassVar[bool] = True

    suites: list[str] = field(default_factory=lambda: ["math", "science", "code"])
    samples_per_problem: int = 1
    limit: int | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    batch_size: int = tuning(32)
    grading: GradingSettings = field(default_factory=lambda: GradingSettings(workers=1))
    confidence: float = 0.95

    def __post_init__(self) -> None:
        positive(self, "samples_per_problem", "batch_size")
        if self.limit is not None:
            positive(self, "limit")
        if not self.suites:
            raise ConfigError("suites=[]: name at least one problem suite, for example [math]")
        if len(set(self.suites)) != len(self.suites):
            raise ConfigError(f"suites={self.suites}: a suite occurs twice")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence={self.confidence}: must be between 0 and 1, for example 0.95")

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        folder = inputs["corpus"].file("problems")
        loaded = {suite: read_suite(folder, suite, self.limit) for suite in self.suites}
        problems = {suite: kept for suite, (kept, _) in loaded.items()}
        dropped = {suite: faults for suite, (_, faults) in loaded.items() if faults}
        kinds = self.grading.check_kinds(problem for chosen in problems.values() for problem in chosen)
        text = self.engine.describe(inputs)
        total = self.samples_per_problem * sum(map(len, problems.values()))
        results: dict[str, SuiteResult] = {}
        with (
            self.engine.open(
                model=inputs["model"].path if "model" in inputs else None,
                tokenizer=inputs["tokenizer"].path,
                batch_size=self.batch_size,
                work=out,
            ) as engine,
            self.grading.open_pool() as pool,
            progress_bar("sampling answers", total) as bar,
        ):

            def advance(finished: int) -> None:
                bar.advance(bar.task_ids[0], finished)

            for suite, chosen in problems.items():
                results[suite] = self._score(engine, suite, chosen, pool=pool, advance=advance)
        versions = grader_versions(kinds, self.grading.sandbox)
        details = {"engine": self.engine.name, "grader": versions, "text": text, "dropped": dropped}
        return write_scores(out, results, self.confidence, details)

    def _score(
        self,
        engine: Engine,
        suite: str,
        problems: list[Any],
        *,
        pool: GradingPool,
        advance: Callable[[int], None],
    ) -> SuiteResult:
        result = evaluate(
            engine,
            problems,
            self.sampling,
            samples=self.samples_per_problem,
            pool=pool,
            progress=advance,
            sandbox=self.grading.sandbox,
        )
        scores = result.metrics(self.confidence)
        log.info(
            "%s: %.1f%% (%.1f to %.1f) on %d problems",
            suite,
            100 * scores["pass_rate"],
            100 * scores["low"],
            100 * scores["high"],
            scores["problems"],
        )
        return result


def write_scores(
    out: Path,
    results: Mapping[str, SuiteResult],
    confidence: float,
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """Write scores.json, problems.json and samples.jsonl.zst under `out`; return the metrics for the receipt.

    Args:
        details: more metrics: the engine, how prompts were encoded, the versions of the graders, dropped problems.
    """
    metrics = {
        "suites": {suite: result.metrics(confidence) for suite, result in results.items()},
        **details,
    }
    write_json(out / SCORES, metrics)
    write_json(out / PROBLEMS, {suite: result.by_problem() for suite, result in results.items()})
    with record_writer(out / SAMPLES) as write:
        for suite, result in results.items():
            for sample in result.flat():
                write({"suite": suite, **sample.record()})
    return metrics


def read_scores(path: Path) -> dict[str, Any]:
    """The metrics in an evaluation artifact folder (or its scores.json).

    Raises:
        ArtifactError: if the file is missing or not in the form that `write_scores` writes.
    """
    file = path / SCORES if path.is_dir() else path
    if not file.is_file():
        raise ArtifactError(f"{file}: no such file; an evaluation artifact contains {SCORES}")
    try:
        scores = read_object(file, ArtifactError)
        suites = scores["suites"]
        for values in suites.values():
            float(values["pass_rate"]), float(values["low"]), float(values["high"])
    except ArtifactError as reason:
        raise ArtifactError(f"{reason}; evaluate again") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as reason:
        raise ArtifactError(f"{file}: not the scores of an evaluation ({reason}); evaluate again") from None
    return dict(scores)


def read_problems(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """suite -> problem -> (right samples, samples) of an evaluation artifact.

    Raises:
        ArtifactError: if the file is missing or not in the form that `write_scores` writes.
    """
    file = path / PROBLEMS
    if not file.is_file():
        raise ArtifactError(f"{file}: no such file; an evaluation artifact contains {PROBLEMS}")
    try:
        return {
            suite: {problem: (int(right), int(samples)) for problem, (right, samples) in problems.items()}
            for suite, problems in read_object(file, ArtifactError).items()
        }
    except (ValueError, TypeError, AttributeError) as reason:
        raise ArtifactError(f"{file}: not the problems of an evaluation ({reason}); evaluate again") from None


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """The records of an evaluation artifact's samples.jsonl.zst, one at a time.

    Raises:
        ArtifactError: if the file is missing or damaged.
    """
    try:
        for record, _ in read_records(path / SAMPLES, keep_half_pairs=True):
            yield record
    except DataError as reason:
        raise ArtifactError(f"{reason}; evaluate again") from None
