"""The prompts of a run and their order, which is a function of a seed and a position, so that a resumed run skips none.

Positions 0, 1, 2 ... go through one shuffle of all prompts after another. A run stores only its position and can
continue from it: within an epoch no prompt is skipped or used twice.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_prism.errors import DataError
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.verification.problems import Problem, load_suite, suite_names

PROMPTS = "prompts"


class PromptOrder:
    """An endless order over `count` prompts.

    Raises:
        DataError: if `count` is 0.
    """

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise DataError(
                "there are no prompts to train on: the difficulty filter has removed all, or the folder is empty"
            )
        self.count, self.seed = count, seed
        self._epoch, self._shuffled = -1, list[int]()

    def take(self, position: int, number: int) -> list[int]:
        """The prompts at `position`, ..., `position + number - 1`."""
        return [self._at(each) for each in range(position, position + number)]

    def _at(self, position: int) -> int:
        epoch, within = divmod(position, self.count)
        if epoch != self._epoch:
            self._shuffled = list(range(self.count))
            random.Random(f"{self.seed}|{epoch}").shuffle(self._shuffled)
            self._epoch = epoch
        return self._shuffled[within]


def load_prompts(folder: Path, limit: int | None = None) -> list[Problem]:
    """The problems of every suite under `folder/prompts/`, at most `limit` of each, in the order of suites and lines.

    Raises:
        DataError: if there is no suite, or one is not valid.
    """
    root = folder / PROMPTS
    names = suite_names(root)
    if not names:
        raise DataError(f"{root}: no prompts (SUITE.jsonl) in this folder")
    return [problem for name in names for problem in load_suite(root, name, limit)]


def write_prompts(folder: Path, problems: Sequence[Problem]) -> None:
    """Write `prompts/DOMAIN.jsonl`, in the order of `problems`."""
    (folder / PROMPTS).mkdir(parents=True)
    for domain in count_by_domain(problems):
        with record_writer(folder / PROMPTS / f"{domain}.jsonl", "utf-8") as write:
            for problem in problems:
                if problem.domain == domain:
                    write(problem.record())


def check_lengths(
    problems: Sequence[Problem], lengths: Sequence[int], context_length: int
) -> tuple[list[Problem], dict[str, int]]:
    """The problems whose prompts leave room for an answer, and the number of all others by domain.

    Args:
        lengths: in tokens, one per problem.

    Raises:
        DataError: if no prompt leaves room.
    """
    kept = [p for p, length in zip(problems, lengths, strict=True) if length < context_length]
    dropped = count_by_domain(
        [p for p, length in zip(problems, lengths, strict=True) if length >= context_length]
    )
    if not kept:
        raise DataError(
            f"context_length={context_length}: every prompt is at least as long (the shortest has {min(lengths)} "
            "tokens); set it higher"
        )
    return kept, dropped


def count_by_domain(problems: Sequence[Problem]) -> dict[str, int]:
    """The number of problems in each domain, sorted by name."""
    counts: dict[str, int] = {}
    for problem in problems:
        counts[problem.domain] = counts.get(problem.domain, 0) + 1
    return dict(sorted(counts.items()))


def rates_by_domain(problems: Sequence[Problem], rates: Sequence[float]) -> Mapping[str, float]:
    """The mean of `rates` for each domain, and for all problems under the key 'all'."""
    by_domain: dict[str, list[float]] = {}
    for problem, rate in zip(problems, rates, strict=True):
        by_domain.setdefault(problem.domain, []).append(rate)
    means = {domain: sum(values) / len(values) for domain, values in sorted(by_domain.items())}
    return means | {"all": sum(rates) / len(rates)} if len(rates) else means
