"""Samples the completions of an evaluation that are missing: not those of an interrupted or an earlier evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.evaluation.generations import (
    FOLDER,
    Chunk,
    Earlier,
    PartWriter,
    chunks_of,
    keys_of,
    read_chunk,
    write_part,
)
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.generation.engine import Completion, Engine, Progress, no_progress
from megatron_prism.platform.console import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class Sampler:
    """Completes the parts of every suite under `out`.

    Attributes:
        earlier: other evaluations whose completions are taken over.
        tokenizer: encodes prompts as the engine does.
        open_engine: opens the engine; it is not called if no completion is missing.
    """

    out: Path
    earlier: Earlier
    tokenizer: Tokenizer
    open_engine: Callable[[], AbstractContextManager[Engine]]

    def run(self, plans: Sequence[SuitePlan], progress: Progress = no_progress) -> int:
        """Sample what is missing; returns the number of completions that were sampled.

        Args:
            progress: called with numbers of completions that exist, sampled now or before.

        Raises:
            RuntimeError: if the engine does not return the completions that it was asked for.
        """
        work = [
            (plan, chunk, numbers)
            for plan in plans
            for chunk in chunks_of(plan)
            if any(numbers := self._missing(plan, chunk, progress))
        ]
        total = sum(plan.completions for plan in plans)
        count = sum(len(row) for _, _, numbers in work for row in numbers)
        if count < total:
            log.info("%d of %d completions are kept, %d are sampled", total - count, total, count)
        if work:
            with self.open_engine() as engine:
                for plan, chunk, numbers in work:
                    self._sample(engine, plan, chunk, numbers, progress=progress)
        return count

    def _missing(self, plan: SuitePlan, chunk: Chunk, progress: Progress) -> list[list[int]]:
        """For each problem of a chunk, the numbers of the samples that do not exist yet."""
        missing = self._not_kept(plan, chunk)
        if any(missing):
            by_id = {problem.id: row for problem, row in zip(chunk.problems, missing, strict=True)}
            for table in self.earlier.completions(plan, by_id):
                write_part(self.out / FOLDER / plan.name, chunk.number, table)
            missing = self._not_kept(plan, chunk)
        progress(plan.samples * len(chunk.problems) - sum(map(len, missing)))
        return missing

    def _not_kept(self, plan: SuitePlan, chunk: Chunk) -> list[list[int]]:
        kept = keys_of(read_chunk(self.out / FOLDER / plan.name, chunk.number, ["id", "sample"]))
        return [
            [number for number in range(plan.samples) if (problem.id, number) not in kept]
            for problem in chunk.problems
        ]

    def _sample(
        self, engine: Engine, plan: SuitePlan, chunk: Chunk, numbers: list[list[int]], *, progress: Progress
    ) -> None:
        rows = [row for row, wanted in enumerate(numbers) if wanted]
        problems = [chunk.problems[row] for row in rows]
        prompts = [problem.prompt for problem in problems]
        prompt_ids = self.tokenizer.encode_batch(prompts)
        with PartWriter(self.out / FOLDER / plan.name, chunk.number) as writer:

            def keep(index: int, number: int, completion: Completion) -> None:
                writer.add(problems[index], number, prompt_ids[index], completion)

            engine.generate(
                prompts,
                plan.params,
                seeds=[chunk.seeds[row] for row in rows],
                numbers=[numbers[row] for row in rows],
                keep=keep,
                progress=progress,
            )
        if lost := sum(map(len, self._not_kept(plan, chunk))):
            raise RuntimeError(f"the engine did not return {lost} completions of suite '{plan.name}'")
