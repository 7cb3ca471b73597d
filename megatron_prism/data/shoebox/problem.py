"""A generated problem, and the split to which it belongs.

The split follows from a hash of the problem's parameters, not from its wording, the seed or the order of generation. So
the same problem is in the same split in every run.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from megatron_prism.data.chat_format import ASSISTANT, USER, chat_prompt
from megatron_prism.errors import ConfigError, DataError

HELD_OUT, VALID, TRAIN = "held_out", "valid", "train"
# Out of 100: large enough that the smallest families (some 60 problems) still give several held-out ones.
HELD_OUT_PERCENT = 15
VALID_PERCENT = 5
# After this many draws without a new problem, a family counts as exhausted.
PATIENCE = 500
THINK = " <think>\n"


@dataclass(frozen=True)
class GeneratedProblem:
    """One problem with its worked solution, in the format of the paper's training data.

    Attributes:
        suite: "math", "science" or "code".
        level: the kind and size of the task within the suite, for example "chain3".
        key: the problem's parameters, without its wording: two problems with the same key are the same problem.
        question: the user's question, one line.
        thoughts: the steps between `<think>` and `</think>`.
        final: the assistant's answer after the thoughts, with the box or the fenced block.
        kind: how it is graded: "math", "choice" or "code".
        answer: the content of the box; empty for code.
        tests: assert statements for code.
    """

    suite: str
    level: str
    key: str
    question: str
    thoughts: str
    final: str
    kind: str
    answer: str = ""
    tests: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        return chat_prompt(self.question)

    @property
    def solution(self) -> str:
        """A correct answer to the prompt, in the format of the training data."""
        return f"{THINK}{self.thoughts}\n</think>\n{self.final}"

    @property
    def document(self) -> str:
        return f"{self.prompt}{self.solution}"

    @property
    def split(self) -> str:
        number = int(self._hash()[:12], 16) % 100
        if number < HELD_OUT_PERCENT:
            return HELD_OUT
        return VALID if number < HELD_OUT_PERCENT + VALID_PERCENT else TRAIN

    @property
    def id(self) -> str:
        return f"{self.suite}-{self.level}-{self._hash()[:12]}"

    def record(self) -> dict[str, Any]:
        """The problem as one line of `problems/SUITE.jsonl`, without its solution."""
        return {
            "id": self.id,
            "domain": self.suite,
            "prompt": self.prompt,
            "kind": self.kind,
            "answer": self.answer,
            "tests": list(self.tests),
        }

    def _hash(self) -> str:
        return hashlib.sha256(f"{self.suite}|{self.level}|{self.key}".encode()).hexdigest()


Maker = Callable[[random.Random], GeneratedProblem]


@dataclass(frozen=True)
class Family:
    """A function that makes problems, and its weight among the families of its suite."""

    weight: float
    make: Maker


def boxed(answer: str) -> str:
    """The closing sentence of a math or science solution."""
    return f"The answer is \\boxed{{{answer}}}."


def problems(families: Mapping[str, Family], split: str, rng: random.Random) -> Iterator[GeneratedProblem]:
    """Endless problems of one split; a family without problems in the split is skipped."""
    names, weights = list(families), [family.weight for family in families.values()]
    while names:
        name = rng.choices(names, weights)[0]
        for _ in range(PATIENCE):
            problem = families[name].make(rng)
            if problem.split == split:
                yield problem
                break
        else:
            at = names.index(name)
            del names[at], weights[at]


def different_problems(
    families: Mapping[str, Family], split: str, count: int, rng: random.Random, *, suite: str
) -> list[GeneratedProblem]:
    """`count` different problems of a split.

    Raises:
        ConfigError: if the suite has fewer.
    """
    found: dict[str, GeneratedProblem] = {}
    repeated = 0
    for problem in problems(families, split, rng):
        repeated = repeated + 1 if problem.id in found else 0
        found.setdefault(problem.id, problem)
        if len(found) == count or repeated == PATIENCE:
            break
    if len(found) < count:
        key = "held_out_problems" if split == HELD_OUT else "prompts"
        raise ConfigError(f"{key}={count}: suite '{suite}' has only about {len(found)}; set it lower")
    return list(found.values())


def check_ids(splits: Mapping[str, set[str]]) -> None:
    """Raise a DataError if a problem, in any wording, is in two splits (`splits`: name -> problem ids)."""
    for (left, some), (right, others) in combinations(splits.items(), 2):
        if shared := some & others:
            raise DataError(
                f"{len(shared)} problems are in both {left} and {right}, for example {min(shared)}"
            )


def check_texts(held_out: Iterable[GeneratedProblem], documents: Iterable[str]) -> None:
    """Raise a DataError if a training document contains the question of a held-out problem."""
    questions = {problem.prompt: problem.id for problem in held_out}
    for document in documents:
        for end in _ends(document, f"\n{ASSISTANT}"):
            prompt = document[max(0, document.rfind(USER, 0, end)) : end]
            if prompt in questions:
                raise DataError(f"held-out problem {questions[prompt]} is in the training text: {prompt!r}")


def _ends(text: str, mark: str) -> Iterator[int]:
    position = text.find(mark)
    while position >= 0:
        yield position + len(mark)
        position = text.find(mark, position + 1)
