"""The stage that makes RULER samples for a model's tokenizer, runs the model on them, and scores its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.readers import source_files
from megatron_prism.data.ruler.generate import Plan, check_plan, make_samples
from megatron_prism.data.ruler.samples import Sample
from megatron_prism.data.ruler.sources import Sources, load_sources
from megatron_prism.data.ruler.tasks import RULER_TASKS, named_tasks
from megatron_prism.data.text_record import check_model
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.replicas import check_layout, gathered, open_replicas
from megatron_prism.evaluation.ruler.predictions import batch_size, check_positions, predict_all
from megatron_prism.evaluation.ruler.scoring import Scored, problems, suites, summary
from megatron_prism.evaluation.scores import write_scores
from megatron_prism.generation.engine import Engine
from megatron_prism.generation.engine_config import EngineConfig, tokenizer_folder
from megatron_prism.models.model_folder import longest_sequence
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import positive, seeds
from megatron_prism.pipeline.file_hash import hash_file
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.pipeline.stage import Stage, tuning
from megatron_prism.platform.console import get_logger, is_rank_zero, progress_bar
from megatron_prism.platform.process_groups import ParallelConfig

PREDICTIONS = "samples.jsonl.zst"
# Fields that name the user's files.
FILES = ("essays", "squad", "hotpot", "words")

log = get_logger(__name__)


@dataclass
class RulerEvaluate(Stage):
    """RULER scores of a model.

    Inputs: "model" (a Megatron folder, or a Hugging Face folder in `model/`; not needed if a server has the model) and
    "tokenizer" (default: the one in the model's hf/). The samples depend only on tokenizer, seed and sources, so models
    that share these get the same ones.

    Fields:
        tasks: registered names (`data.ruler.tasks.TASKS`).
        lengths: number of tokens of prompt and answer together.
        samples: number of samples for each task and length.
        keys: words from which the keys of needle tasks are drawn; None: the task's own.
        essays, squad, hotpot, words: the user's files; None: text from this machine, and the samples' `source` says so.
        repeat_haystack: repeat essays that are shorter than a length.
        engine: the engine; with `openai`, the model behind a server is scored.
        batch_tokens: maximum number of tokens that 'megatron' or 'hf' decodes together; a longer sample is decoded
            alone.
        parallel: the layout of engine 'megatron'; the replicas of data parallelism share the samples.
        confidence: coverage of the intervals.
    """

    kind: ClassVar[str] = "ruler"
    version: ClassVar[int] = 3  # version 2 had no problems.json
    resumable: ClassVar[bool] = True

    tasks: list[str] = field(default_factory=lambda: list(RULER_TASKS))
    lengths: list[int] = field(default_factory=lambda: [8192, 16384, 32768, 65536, 131072])
    samples: int = 100
    seed: int = 1
    keys: list[str] | None = None
    essays: str | None = None
    squad: str | None = None
    hotpot: str | None = None
    words: str | None = None
    repeat_haystack: bool = False
    engine: EngineConfig = field(default_factory=EngineConfig)
    batch_tokens: int = tuning(65536)
    parallel: ParallelConfig = tuning(default_factory=ParallelConfig)
    confidence: float = 0.95

    def __post_init__(self) -> None:
        positive(self, "samples", "batch_tokens")
        seeds(self, "seed")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence={self.confidence}: must be between 0 and 1, for example 0.95")
        check_layout(self.parallel, self.engine.name)
        self.plan()

    @property
    def world_size(self) -> int:
        return self.parallel.world_size

    def plan(self) -> Plan:
        """The samples to make.

        Raises:
            ConfigError: for an unknown task or an impossible length.
        """
        keys = None if self.keys is None else tuple(self.keys)
        return Plan(tuple(named_tasks(self.tasks)), tuple(self.lengths), self.samples, self.seed, keys)

    def identity(self) -> dict[str, Any]:
        """Uses the contents of the user's files instead of their names, because the contents decide the samples."""
        named = {name: getattr(self, name) for name in FILES}
        hashes = {
            name: [hash_file(file) for file in source_files(Path(path))]
            for name, path in named.items()
            if path is not None
        }
        return {key: value for key, value in super().identity().items() if key not in FILES} | hashes

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        plan = self.plan()
        model = inputs["model"].path if "model" in inputs else None
        if model is not None and (longest := longest_sequence(model)) is not None:
            check_positions(plan.lengths, longest, model)
        folder = tokenizer_folder(inputs)
        tokenizer = self.engine.tokenizer(folder)
        if "model" in inputs:
            check_model(inputs["model"], tokenizer)
        sources = self._sources(plan)
        check_plan(plan, tokenizer, sources)
        opened = partial(
            self.engine.open,
            model=model,
            tokenizer=folder,
            batch_size=batch_size(self.batch_tokens, min(plan.lengths)),
            work=out,
            parallel=self.parallel,
        )
        groups = (
            make_samples(
                task, tokenizer, length, plan.samples, seed=plan.seed, sources=sources, keys=plan.keys
            )
            for length in plan.lengths
            for task in plan.tasks
        )
        found = self._answer(opened, groups, plan.samples * len(plan.tasks) * len(plan.lengths))
        if not is_rank_zero():
            return {}
        places = {
            (task, length): index for index, (length, task) in enumerate(product(plan.lengths, self.tasks))
        }
        found.sort(key=lambda each: (places[each[1].task, each[1].length], each[1].index))
        with record_writer(out / PREDICTIONS) as write:
            for record, _ in found:
                write(record)
        scored = [each for _, each in found]
        metrics = summary(scored, self.confidence)
        for length, entry in metrics["lengths"].items():
            log.info(
                "%s tokens: recall %.1f%% (%.1f to %.1f) on %d samples",
                length,
                100 * entry["recall"],
                100 * entry["low"],
                100 * entry["high"],
                entry["samples"],
            )
        metrics |= {"engine": self.engine.name, "text": tokenizer.record()}
        metrics["suites"] = suites(metrics["lengths"], self.confidence)
        write_scores(out, metrics, problems(scored))
        return metrics

    def _answer(
        self,
        opened: Callable[[], AbstractContextManager[Engine]],
        groups: Iterable[Sequence[Sample]],
        total: int,
    ) -> list[tuple[dict[str, Any], Scored]]:
        """On rank 0, the records and scores of all answers, replica by replica; elsewhere nothing."""
        with (
            open_replicas(self.parallel) as replicas,
            opened() as engine,
            progress_bar("answering RULER", total) as bar,
        ):

            def advance(finished: int) -> None:
                bar.advance(bar.task_ids[0], finished * replicas.count)

            shares = (share for group in groups if (share := replicas.share(group)))
            own = [
                (each.record(), each.scored())
                for each in predict_all(engine, shares, self.batch_tokens, advance)
            ]
            return [each for replica in gathered(replicas.first, own) for each in replica]

    def _sources(self, plan: Plan) -> Sources:
        named = {name: getattr(self, name) for name in FILES}
        paths = {name: None if path is None else Path(path) for name, path in named.items()}
        return load_sources(plan.tasks, repeat_haystack=self.repeat_haystack, **paths)
