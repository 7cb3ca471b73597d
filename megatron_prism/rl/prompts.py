"""The prompts of a run and the order they come in: a function of a seed and a position, so that a resume loses none.

Position 0, 1, 2 ... walks through one shuffle of all prompts after another. A run remembers how many it has reached;
nothing else is needed to go on with the next, and none is skipped or met twice within an epoch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_prism.errors import DataError
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.verification.problems import Problem, load_suite, suite_names

PROMPTS = "prompts"


class PromptOrder:
    """An endless order over `count` prompts.

    Raises:
        DataError: without prompts.
    """

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise DataError("no prompts to train on: the difficulty filter left none, or the folder is empty")
        self.count, self.seed = count, seed
        self._epoch, self._shuffled = -1, list[int]()

    def take(self, position: int, number: int) -> list[int]:
        """The prompts at `position`, ..., `position + number - 1`."""
        return [self._at(place) for place in range(position, position + number)]

    def _at(self, place: int) -> int:
        epoch, within = divmod(place, self.count)
        if epoch != self._epoch:
            self._shuffled = list(range(self.count))
            random.Random(f"{self.seed}|{epoch}").shuffle(self._shuffled)
            self._epoch = epoch
        return self._shuffled[within]


def load_prompts(folder: Path, limit: int | None = None) -> list[Problem]:
    """Every suite under `folder/prompts/`, `limit` of each at most, in the order of suites and lines.

    Raises:
        DataError: if there is none, or one is not what it should be.
    """
    root = folder / PROMPTS
    names = suite_names(root)
    if not names:
        raise DataError(f"{root}: no prompts (SUITE.jsonl) here")
    return [problem for name in names for problem in load_suite(root, name, limit)]


def write_prompts(folder: Path, problems: Sequence[Problem]) -> None:
    """Write `prompts/DOMAIN.jsonl`, in the order given."""
    (folder / PROMPTS).mkdir(parents=True)
    for domain in count_by_domain(problems):
        with record_writer(folder / PROMPTS / f"{domain}.jsonl", "utf-8") as write:
            for problem in problems:
                if problem.domain == domain:
                    write(asdict(problem))


def check_lengths(
    problems: Sequence[Problem], lengths: Sequence[int], context_length: int
) -> tuple[list[Problem], dict[str, int]]:
    """The problems whose prompts leave room for an answer, and how many of each domain do not.

    Args:
        lengths: in tokens, one per problem.

    Raises:
        DataError: if none does.
    """
    kept = [p for p, length in zip(problems, lengths, strict=True) if length < context_length]
    dropped = count_by_domain(
        [p for p, length in zip(problems, lengths, strict=True) if length >= context_length]
    )
    if not kept:
        raise DataError(
            f"context_length={context_length}: every prompt is at least as long (the shortest has {min(lengths)} "
            "tokens); raise it"
        )
    return kept, dropped


def count_by_domain(problems: Sequence[Problem]) -> dict[str, int]:
    """How many problems each domain has, by name."""
    counts: dict[str, int] = {}
    for problem in problems:
        counts[problem.domain] = counts.get(problem.domain, 0) + 1
    return dict(sorted(counts.items()))


def rates_by_domain(problems: Sequence[Problem], rates: Sequence[float]) -> Mapping[str, float]:
    """Mean of `rates` per domain, and over all problems as 'all'."""
    by_domain: dict[str, list[float]] = {}
    for problem, rate in zip(problems, rates, strict=True):
        by_domain.setdefault(problem.domain, []).append(rate)
    means = {domain: sum(values) / len(values) for domain, values in sorted(by_domain.items())}
    return means | {"all": sum(rates) / len(rates)} if len(rates) else means
