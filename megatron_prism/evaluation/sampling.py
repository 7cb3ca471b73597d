"""Samples the completions of an evaluation that are missing: not those of an interrupted or an earlier evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import DataError
from megatron_prism.evaluation.generations import (
    FOLDER,
    Chunk,
    Earlier,
    PartWriter,
    chunks_of,
    sampled_keys,
    write_part,
)
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.evaluation.replicas import Replicas, agreed, gathered
from megatron_prism.generation.engine import Completion, Engine, Progress, no_progress
from megatron_prism.platform.console import get_logger
from megatron_prism.platform.waiting import wait_for_files

# So many problems that cannot be sampled are named with the reason.
NAMED = 5

log = get_logger(__name__)


@dataclass(frozen=True)
class Sampler:
    """Completes the parts of every suite under `out`.

    Attributes:
        earlier: other evaluations whose completions are taken over.
        tokenizer: encodes prompts as the engine does.
        open_engine: opens the engine; it is not called if no completion is missing.
        replicas: this rank's place among the replicas that share the work.
    """

    out: Path
    earlier: Earlier
    tokenizer: Tokenizer
    open_engine: Callable[[], AbstractContextManager[Engine]]
    replicas: Replicas = field(default_factory=Replicas)

    def run(self, plans: Sequence[SuitePlan], progress: Progress = no_progress) -> int:
        """Sample what is missing, together with the other replicas; returns the number of completions that was missing.

        Args:
            progress: called with numbers of completions that exist, sampled now or before.

        Raises:
            DataError: if not one completion of a suite can be made.
            RuntimeError: if the engine does not return the completions that it was asked for.
        """
        chunks = [(plan, chunk) for plan in plans for chunk in chunks_of(plan)]
        # Rank 0 decides, so that the ranks of a model cannot see different files and ask for different samples.
        missing = agreed([self._missing(*each, progress) for each in chunks] if self.replicas.leads else None)
        work = [(*each, numbers) for each, numbers in zip(chunks, missing, strict=True) if any(numbers)]
        total = sum(plan.completions for plan in plans)
        count = sum(len(row) for _, _, numbers in work for row in numbers)
        if count < total:
            log.info("%d of %d completions are kept, %d are sampled", total - count, total, count)
        parts: list[Path] = []
        if work:
            with self.open_engine() as engine:
                for plan, chunk, numbers in work:
                    parts += self._sample(engine, plan, chunk, self._share(numbers), progress=progress)
                    if self.replicas.count == 1 and self.replicas.leads:
                        # Before a server has refused every request of a long evaluation. The other ranks of a model
                        # would read files while this one writes them.
                        self._check_some(plan)
        for written in gathered(self.replicas.first, parts):
            wait_for_files(written)
        if self.replicas.leads:
            self._check(work)
        return count

    def _share(self, numbers: list[list[int]]) -> list[list[int]]:
        """The samples that this replica makes: every so many of all, so that replicas get equally many of a problem."""
        flat = [(row, number) for row, wanted in enumerate(numbers) for number in wanted]
        own: list[list[int]] = [[] for _ in numbers]
        for row, number in self.replicas.share(flat):
            own[row].append(number)
        return own

    def _check(self, work: Sequence[tuple[SuitePlan, Chunk, list[list[int]]]]) -> None:
        for plan, chunk, _ in work:
            self._check_some(plan)
            if lost := sum(map(len, self._not_kept(plan, chunk, refused=True))):
                raise RuntimeError(f"the engine did not return {lost} completions of suite '{plan.name}'")

    def _check_some(self, plan: SuitePlan) -> None:
        def any_kept(refused: bool) -> bool:
            folder = self.out / FOLDER / plan.name
            return any(sampled_keys(folder, chunk.number, refused=refused) for chunk in chunks_of(plan))

        if not any_kept(refused=False) and any_kept(refused=True):
            raise DataError(
                f"suite '{plan.name}': no completion of any problem can be made (the warnings above say why); shorten "
                "the prompts, or use an engine or a server that takes them"
            )

    def _missing(self, plan: SuitePlan, chunk: Chunk, progress: Progress) -> list[list[int]]:
        """For each problem of a chunk, the numbers of the samples that do not exist yet.

        What was refused is asked for again: the server may have another limit now.
        """
        missing = self._not_kept(plan, chunk)
        if any(missing):
            by_id = {problem.id: row for problem, row in zip(chunk.problems, missing, strict=True)}
            for table in self.earlier.completions(plan, by_id):
                write_part(self.out / FOLDER / plan.name, chunk.number, table)
            missing = self._not_kept(plan, chunk)
        progress(plan.samples * len(chunk.problems) - sum(map(len, missing)))
        return missing

    def _not_kept(self, plan: SuitePlan, chunk: Chunk, *, refused: bool = False) -> list[list[int]]:
        kept = sampled_keys(self.out / FOLDER / plan.name, chunk.number, refused=refused)
        return [
            [number for number in range(plan.samples) if (problem.id, number) not in kept]
            for problem in chunk.problems
        ]

    def _sample(
        self, engine: Engine, plan: SuitePlan, chunk: Chunk, numbers: list[list[int]], *, progress: Progress
    ) -> list[Path]:
        """Sample this replica's completions of a chunk; returns the parts that this rank has written."""
        rows = [row for row, wanted in enumerate(numbers) if wanted]
        if not rows:
            return []
        problems = [chunk.problems[row] for row in rows]
        prompts = [problem.prompt for problem in problems]
        prompt_ids = self.tokenizer.encode_batch(prompts)
        refused: dict[str, str] = {}
        with PartWriter(self.out / FOLDER / plan.name, chunk.number, self.replicas.index) as writer:

            def keep(index: int, number: int, completion: Completion) -> None:
                if self.replicas.first:
                    writer.add(problems[index], number, prompt_ids[index], completion)

            def refuse(index: int, number: int, reason: str) -> None:
                if self.replicas.first:
                    writer.add_refused(problems[index], number, prompt_ids[index])
                refused[problems[index].id] = reason

            engine.generate(
                prompts,
                plan.params,
                seeds=[chunk.seeds[row] for row in rows],
                numbers=[numbers[row] for row in rows],
                keep=keep,
                refuse=refuse,
                # Replicas have equal shares, and only rank 0 shows a bar.
                progress=lambda finished: progress(finished * self.replicas.count),
            )
        for problem, reason in list(refused.items())[:NAMED]:
            log.warning("%s: problem '%s' cannot be sampled: %s", plan.name, problem, reason)
        if len(refused) > NAMED:
            log.warning("%s: %d more problems cannot be sampled", plan.name, len(refused) - NAMED)
        return writer.written
