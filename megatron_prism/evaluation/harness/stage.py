"""The stage that runs tasks of lm-evaluation-harness, among them the two Open LLM Leaderboards, on a model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_prism.data.text_policy import PARSE, SPELL_OUT, TextSettings
from megatron_prism.data.text_record import check_model
from megatron_prism.errors import ConfigError, suggest
from megatron_prism.evaluation.harness.definitions import Benchmark, read_suite, suite_names
from megatron_prism.evaluation.harness.package import require_lm_eval, versions
from megatron_prism.evaluation.replicas import agreed, check_layout, open_replicas
from megatron_prism.generation.engine_config import EngineConfig, tokenizer_folder
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import positive, seeds
from megatron_prism.pipeline.stage import Stage, tuning
from megatron_prism.platform.console import get_logger, is_rank_zero, progress_bar
from megatron_prism.platform.process_groups import ParallelConfig

if TYPE_CHECKING:
    from megatron_prism.evaluation.harness.results import TaskResult

SCORES, PROBLEMS, SAMPLES = "scores.json", "problems.json", "harness.parquet"
# The results of the tasks that are done, while others are not.
FINISHED = "finished"
# Types of lm-eval's tasks that only generate.
GENERATING = ("generate_until",)
# What `prism eval --suite` calls the suites here.
GENERAL = {
    "general": ["leaderboard-v1", "leaderboard-v2"],
    "general-v1": ["leaderboard-v1"],
    "general-v2": ["leaderboard-v2"],
}

log = get_logger(__name__)


def general_stage(names: Sequence[str], engine: EngineConfig | None = None, **fields: Any) -> Harness:
    """The stage for names of `GENERAL` and of lm-eval's tasks and groups.

    Args:
        engine: reads the names of special tokens in a text as these tokens, as lm-eval does, unless it says otherwise.
        fields: further fields of `Harness`.
    """
    if engine is not None:
        if engine.text.special_tokens == SPELL_OUT:
            engine = replace(engine, text=replace(engine.text, special_tokens=PARSE))
        fields["engine"] = engine
    suites = [suite for name in names for suite in GENERAL.get(name, [])]
    tasks = [name for name in names if name not in GENERAL]
    return Harness(suites=list(dict.fromkeys(suites)), tasks=tasks, **fields)


def _engine() -> EngineConfig:
    """lm-eval's `hf` model reads the names of special tokens in a text as these tokens."""
    return EngineConfig(text=TextSettings(special_tokens=PARSE))


@dataclass
class Harness(Stage):
    """Scores `model` on tasks of lm-eval.

    Inputs: "model" (unless a server has it) and "tokenizer" (default: the one in the model's hf/).

    Fields:
        suites: "leaderboard-v1", "leaderboard-v2".
        tasks: further tasks and groups of lm-eval, or of `include_path`.
        metrics: task -> the metric of `tasks` that is scored; by default the task's first.
        num_fewshot: task or group -> examples in its prompts; by default what the suite, or else the task, says.
        limit: documents per task, from the first on; None: all.
        seed: draws the examples of prompts (lm-eval's default), and the completions of tasks that sample.
        include_path: folder with definitions of tasks (YAML), which replace lm-eval's of the same name.
        engine: the engine; log-likelihoods need 'megatron'.
        batch_tokens: maximum number of tokens that are read together for log-likelihoods.
        batch_size: maximum number of completions that engine 'megatron' decodes together.
        parallel: the layout of engine 'megatron'; the replicas of data parallelism share the requests.
        confidence: coverage of the intervals.
    """

    kind: ClassVar[str] = "harness"
    resumable: ClassVar[bool] = True

    suites: list[str] = field(default_factory=lambda: list(GENERAL["general"]))
    tasks: list[str] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)
    num_fewshot: dict[str, int] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 1234
    include_path: str | None = None
    engine: EngineConfig = field(default_factory=_engine)
    batch_tokens: int = tuning(16384)
    batch_size: int = tuning(64)
    parallel: ParallelConfig = tuning(default_factory=ParallelConfig)
    confidence: float = 0.95

    def __post_init__(self) -> None:
        positive(self, "batch_tokens", "batch_size")
        seeds(self, "seed")
        check_layout(self.parallel, self.engine.name)
        if self.limit is not None:
            positive(self, "limit")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence={self.confidence}: must be between 0 and 1, for example 0.95")
        if not self.suites and not self.tasks:
            raise ConfigError(
                f"suites=[], tasks=[]: name a suite ({', '.join(suite_names())}) or a task of lm-eval"
            )
        known = [name for benchmark in self._benchmarks() for name in benchmark.tasks]
        for key, given in (("metrics", self.metrics), ("num_fewshot", self.num_fewshot)):
            for name in given:
                if name not in known:
                    raise ConfigError(f"{key}.{name}: this task is not evaluated{suggest(name, known)}")
        for name, examples in self.num_fewshot.items():
            if examples < 0:
                raise ConfigError(f"num_fewshot.{name}={examples}: must be 0 or more")

    @property
    def world_size(self) -> int:
        return self.parallel.world_size

    def identity(self) -> dict[str, Any]:
        """The contents of the definitions in place of their folder, because they decide the scores."""
        if self.include_path is None:
            return super().identity()
        from megatron_prism.evaluation.harness.tasks import definition_hashes

        return super().identity() | {"include_path": definition_hashes(Path(self.include_path))}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        require_lm_eval()
        from megatron_prism.evaluation.harness.tasks import load_tasks

        benchmarks = self._benchmarks()
        names = list(dict.fromkeys(name for benchmark in benchmarks for name in benchmark.tasks))
        loaded = load_tasks(names, None if self.include_path is None else Path(self.include_path))
        todo = self._prepared(benchmarks, loaded)
        results, text, shortened = self._results(inputs, out, todo)
        if not is_rank_zero():
            return {}
        by_name = {name: {task: results[task] for task in tasks} for name, tasks in loaded.items()}
        metrics = self._scores(by_name, results) | {
            "engine": self.engine.name,
            "text": text,
            "versions": versions(),
            "seed": self.seed,
            "shortened_prompts": shortened,
        }
        problems = {task: rates for task, result in results.items() if (rates := result.rates()) is not None}
        write_json(
            out / PROBLEMS,
            {task: {doc: [rate, 1] for doc, rate in rates.items()} for task, rates in problems.items()},
        )
        write_json(out / SCORES, metrics)
        shutil.rmtree(out / FINISHED)
        return metrics

    def _benchmarks(self) -> list[Benchmark]:
        own = [
            Benchmark(name, {name: 0}, (self.metrics[name],) if name in self.metrics else ())
            for name in self.tasks
        ]
        return [benchmark for suite in self.suites for benchmark in read_suite(suite)] + own

    def _prepared(
        self, benchmarks: Sequence[Benchmark], loaded: Mapping[str, Mapping[str, Any]]
    ) -> list[tuple[Benchmark, Any]]:
        """Each task once, with its benchmark."""
        from megatron_prism.evaluation.harness.language_model import no_likelihoods
        from megatron_prism.evaluation.harness.tasks import check_nltk, check_requests
        from megatron_prism.generation.open_engine import has_likelihoods

        todo: dict[str, tuple[Benchmark, Any]] = {}
        for benchmark in benchmarks:
            check_nltk(benchmark)
            for name in benchmark.tasks:
                for task_name, task in loaded[name].items():
                    if task_name in todo:
                        raise ConfigError(
                            f"task '{task_name}' would be evaluated twice, for '{todo[task_name][0].name}' and for "
                            f"'{benchmark.name}'; use a stage for each"
                        )
                    if task.OUTPUT_TYPE not in GENERATING and not has_likelihoods(self.engine.name):
                        raise no_likelihoods(self.engine.name, task_name)
                    check_requests(task, self.num_fewshot.get(name, benchmark.num_fewshot), self.limit)
                    todo[task_name] = benchmark, task
        return list(todo.values())

    def _results(
        self, inputs: Mapping[str, Artifact], out: Path, todo: Sequence[tuple[Benchmark, Any]]
    ) -> tuple[dict[str, TaskResult], dict[str, Any], int]:
        """On rank 0, task -> result; those of an interrupted run are taken over. Also how prompts were encoded, and how
        many were too long."""
        from megatron_prism.evaluation.harness.language_model import EngineLM
        from megatron_prism.evaluation.harness.readable import write_answers
        from megatron_prism.evaluation.harness.results import (
            TaskResult,
            join_samples,
            run_task,
            write_samples,
        )

        model = inputs["model"].path if "model" in inputs else None
        folder = tokenizer_folder(inputs)
        tokenizer = self.engine.tokenizer(folder)
        if "model" in inputs:
            check_model(inputs["model"], tokenizer)
        finished = out / FINISHED
        files = [finished / f"{number:05}.json" for number in range(len(todo))]
        sizes = [self._documents(task) for _, task in todo]
        with (
            open_replicas(self.parallel) as replicas,
            self.engine.open(
                model=model, tokenizer=folder, batch_size=self.batch_size, work=out, parallel=self.parallel
            ) as engine,
            progress_bar("answering lm-eval's tasks", sum(sizes)) as bar,
        ):
            lm = EngineLM(
                engine,
                tokenizer,
                name=self.engine.name,
                batch_tokens=self.batch_tokens,
                batch_size=self.batch_size,
                seed=self.seed,
                replicas=replicas,
            )
            if replicas.leads:
                finished.mkdir(exist_ok=True)
            done = agreed([file.is_file() for file in files] if replicas.leads else None)
            for (benchmark, task), file, size, was_done in zip(todo, files, sizes, done, strict=True):
                lm.progress = partial(_advance, bar, size)
                if was_done:
                    lm.progress(1.0)
                    continue
                result, samples = run_task(lm, task, benchmark, limit=self.limit, seed=self.seed)
                if replicas.leads:
                    write_samples(file.with_suffix(".parquet"), samples)
                    write_answers(out, result, samples)
                    result.save(file)
        results = {}
        if is_rank_zero():
            join_samples([file.with_suffix(".parquet") for file in files], out / SAMPLES)
            results = {
                task.config.task: TaskResult.load(file) for (_, task), file in zip(todo, files, strict=True)
            }
        return results, tokenizer.record(), lm.shortened

    def _documents(self, task: Any) -> int:
        documents = len(task.eval_docs)
        return documents if self.limit is None else min(documents, self.limit)

    def _scores(
        self, by_name: Mapping[str, Mapping[str, TaskResult]], results: Mapping[str, TaskResult]
    ) -> dict[str, Any]:
        from megatron_prism.evaluation.harness.scores import suite_entry, task_entry

        suites, measures = {}, {}
        for task, result in results.items():
            rates = result.rates()
            if rates is None:
                measures[task] = {"lm_eval": result.aggregated, **result.record}
            else:
                suites[task] = task_entry(result, rates, self.confidence)
        averages = {suite: suite_entry(read_suite(suite), by_name, self.confidence) for suite in self.suites}
        for line in _lines(averages, suites, measures):
            log.info(line)
        return {"suites": suites, "averages": averages, "measures": measures}


def _advance(bar: Any, documents: int, share: float) -> None:
    """Move the bar by a share of a task's documents, each of which may have several requests."""
    bar.advance(bar.task_ids[0], share * documents)


def _lines(
    averages: Mapping[str, Any], suites: Mapping[str, Any], measures: Mapping[str, Any]
) -> Iterator[str]:
    for suite, found in averages.items():
        yield f"{suite}: {_shown(found, 'score')}"
        for name, entry in found["benchmarks"].items():
            yield f"  {name}: {_shown(entry, 'score')}"
    if not averages:
        for task, entry in suites.items():
            yield f"{task}: {entry['metric']} {_shown(entry, 'pass_rate')}"
    for task, entry in measures.items():
        yield f"{task}: " + ", ".join(f"{key} {value:.4g}" for key, value in entry["lm_eval"].items())


def _shown(entry: Mapping[str, Any], key: str) -> str:
    return f"{100 * entry[key]:.1f}% ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"
