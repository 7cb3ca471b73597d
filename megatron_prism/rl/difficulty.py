"""How hard each prompt is for a model: the number of correct sampled answers, as a Parquet file (paper, section 9.1).

Prompts are sampled in chunks, and each finished chunk is written to a file. An interrupted run continues with the next
chunk, and the counts do not depend on the interruption.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import ArtifactError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import positive
from megatron_prism.pipeline.stage import Stage, tuning
from megatron_prism.platform.console import get_logger, progress_bar
from megatron_prism.rl.prompts import load_prompts
from megatron_prism.rl.rewards import RewardSettings
from megatron_prism.rl.rollout import Group, Rollouts
from megatron_prism.verification.grade import grader_versions
from megatron_prism.verification.problems import TEXT_KEYS, Problem
from megatron_prism.verification.settings import GradingSettings

STORE = "difficulty.parquet"
PARTS = "parts"

log = get_logger(__name__)


@dataclass
class Difficulty(Stage):
    """Inputs: `model` (unless a server has it), `tokenizer`, `prompts`. Output: `difficulty.parquet`.

    It has a row per prompt. The columns are those of a problem (`tests` as JSON), `correct` and `samples`, `unfinished`
    (answers that ran out of tokens) and `mean_tokens`.

    Attributes:
        samples: answers per prompt (the paper: 16).
        engine: the engine; with `openai` the model behind a server is measured.
        sampling: the paper samples at temperature 1 from the whole distribution.
        limit: prompts per domain (None: all); those whose ids have the lowest hashes are kept.
        chunk: prompts sampled and graded together; an interruption loses at most one chunk.
        slots: how many answers are sampled at once, at most.
        grading: the grading processes, their limits, and how programs that the model wrote are isolated.
    """

    kind: ClassVar[str] = "difficulty"
    version: ClassVar[int] = 2  # version 1 of the grader gave other verdicts
    resumable: ClassVar[bool] = True

    samples: int = 16
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    rewards: RewardSettings = field(default_factory=RewardSettings)
    limit: int | None = None
    chunk: int = 64
    slots: int = tuning(256)
    grading: GradingSettings = field(default_factory=GradingSettings)

    def __post_init__(self) -> None:
        positive(self, "samples", "chunk", "slots")
        if self.limit is not None:
            positive(self, "limit")

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        problems = load_prompts(inputs["prompts"].path, self.limit)
        kinds = self.grading.check_kinds(problems)
        text = self.engine.describe(inputs)
        parts = out / PARTS
        parts.mkdir(exist_ok=True)
        files = [parts / f"{start:07d}.parquet" for start in range(0, len(problems), self.chunk)]
        with (
            self.engine.open(
                model=inputs["model"].path if "model" in inputs else None,
                tokenizer=inputs["tokenizer"].path,
                batch_size=self.slots,
                work=out,
            ) as engine,
            self.grading.open_pool() as pool,
            progress_bar("counting correct answers", len(problems)) as bar,
        ):
            rollouts = Rollouts(engine, pool, self.sampling, self.rewards, sandbox=self.grading.sandbox)
            for index, file in enumerate(files):
                chosen = problems[index * self.chunk : (index + 1) * self.chunk]
                if not file.exists():
                    _write(file, rollouts.groups(chosen, self.samples, f"difficulty {index}"))
                bar.advance(bar.task_ids[0], len(chosen))
        counts = _join(files, out / STORE)
        shutil.rmtree(parts)
        return {
            "samples": self.samples,
            "engine": self.engine.name,
            "text": text,
            "domains": counts,
            "grader": grader_versions(kinds, self.grading.sandbox),
        }


@dataclass(frozen=True)
class Counted:
    """A prompt and how many of its `samples` answers were correct."""

    problem: Problem
    correct: int
    samples: int


def read_difficulty(folder: Path) -> list[Counted]:
    """The rows of a difficulty artifact.

    Raises:
        ArtifactError: if the file is missing or was not written by `Difficulty`.
    """
    import pyarrow.parquet as parquet

    file = folder / STORE
    try:
        rows = parquet.read_table(file).to_pylist()
        return [
            Counted(
                Problem(**{key: row[key] for key in TEXT_KEYS}, tests=json.loads(row["tests"])),
                int(row["correct"]),
                int(row["samples"]),
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ArtifactError(
            f"{file}: not readable as the output of a difficulty stage ({problem}); run the stage again"
        ) from None


def _write(file: Path, groups: Sequence[Group]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    rows = []
    for group in groups:
        completions = [answer.completion for answer in group.answers]
        problem = asdict(group.problem)
        rows.append(
            problem
            | {
                "tests": json.dumps(problem["tests"]),
                "correct": group.correct,
                "samples": len(completions),
                "unfinished": sum(each.finish_reason == "length" for each in completions),
                "mean_tokens": sum(len(each.token_ids) for each in completions) / len(completions),
            }
        )
    partial = file.with_suffix(".partial")
    parquet.write_table(pyarrow.Table.from_pylist(rows), partial)
    partial.rename(file)


def _join(files: Sequence[Path], target: Path) -> dict[str, Any]:
    """Join all parts in one file. Returns, for each domain, how many prompts have each number of correct answers."""
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.concat_tables([parquet.read_table(file) for file in files])
    parquet.write_table(table, target)
    histograms: dict[str, Counter[int]] = {}
    for domain, correct in zip(table["domain"].to_pylist(), table["correct"].to_pylist(), strict=True):
        histograms.setdefault(domain, Counter())[correct] += 1
    for domain, histogram in sorted(histograms.items()):
        log.info(
            "%s: prompts by number of correct answers: %s",
            domain,
            " ".join(f"{k}:{n}" for k, n in sorted(histogram.items())),
        )
    return {
        domain: {str(count): number for count, number in sorted(histogram.items())}
        for domain, histogram in sorted(histograms.items())
    }
