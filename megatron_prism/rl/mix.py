"""RL prompts chosen by difficulty: the paper's unbalanced and balanced mixes, MC and MCS (section 9.1)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.chat_format import chat_prompt, question_of
from megatron_prism.errors import ConfigError, DataError, suggest
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import LARGEST_COUNT, one_of, positive, seeds
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger
from megatron_prism.rl.difficulty import Counted, read_difficulty
from megatron_prism.rl.prompts import count_by_domain, write_prompts
from megatron_prism.verification.problems import Problem

UNBALANCED, BALANCED = "unbalanced", "balanced"
MC, MCS = ["math", "code"], ["math", "code", "science"]
# Lowest and highest number of correct answers out of 16 (paper, section 9.1): math with exactly one, the rest with any.
PAPER_RANGES = {"math": [1, 1], "code": [1, 16], "science": [1, 16]}
# The paper randomizes the instructions of science prompts in the balanced mix but does not print them. These are ours.
SCIENCE_INSTRUCTIONS = (
    "{question}",
    "{question} Put the final answer in \\boxed{{}}.",
    "Answer the question and box the answer. {question}",
    "Think step by step, then box the answer. {question}",
)

log = get_logger(__name__)


@dataclass
class PromptMix(Stage):
    """Input: `difficulty`. Output: `prompts/DOMAIN.jsonl`.

    Attributes:
        mix: 'unbalanced' takes the prompts within `ranges`; 'balanced' gives every domain as many as the largest has,
            by adding random prompts without any correct answer, and varies the instructions of science.
        domains: [math, code] (MC) or [math, code, science] (MCS).
        ranges: lowest and highest number of correct answers, per domain.
        limit: prompts per domain; None takes all.
    """

    kind: ClassVar[str] = "prompts"

    mix: str = UNBALANCED
    domains: list[str] = field(default_factory=lambda: list(MCS))
    ranges: dict[str, list[int]] = field(
        default_factory=lambda: {k: list(v) for k, v in PAPER_RANGES.items()}
    )
    limit: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        one_of(self.mix, (UNBALANCED, BALANCED), "mix")
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise ConfigError(f"domains={self.domains}: name at least one domain, and each only once")
        for domain in self.domains:
            if domain not in self.ranges:
                raise ConfigError(f"ranges: no range for domain '{domain}'{suggest(domain, self.ranges)}")
        for domain, bounds in self.ranges.items():
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= LARGEST_COUNT:
                raise ConfigError(
                    f"ranges.{domain}={bounds}: give the lowest and the highest number of correct answers"
                )
        if self.limit is not None:
            positive(self, "limit")
        seeds(self, "seed")

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        counted = read_difficulty(inputs["difficulty"].path)
        present = {each.problem.domain for each in counted}
        for domain in self.domains:
            if domain not in present:
                raise DataError(
                    f"{inputs['difficulty'].path}: no prompts of domain '{domain}'{suggest(domain, present)}; "
                    "remove it from domains"
                )
        chosen = self.choose(counted)
        if not chosen:
            raise DataError(
                f"{inputs['difficulty'].path}: no prompt has a number of correct answers within ranges={self.ranges}; "
                "widen them, or use more samples in the difficulty stage"
            )
        write_prompts(out, chosen)
        counts = count_by_domain(chosen)
        log.info("%s mix: %s", self.mix, ", ".join(f"{number} {domain}" for domain, number in counts.items()))
        return {"mix": self.mix, "prompts": counts}

    def choose(self, counted: Sequence[Counted]) -> list[Problem]:
        """The prompts of the mix, domain by domain, each in the order of the `difficulty` input."""
        within = {domain: self._within(counted, domain) for domain in self.domains}
        if self.mix == BALANCED:
            size = max(len(found) for found in within.values())
            within = {
                domain: self._with_unsolved(counted, domain, found, size) for domain, found in within.items()
            }
            if "science" in within:
                rng = random.Random(f"{self.seed}|instructions")
                within["science"] = [_with_instruction(problem, rng) for problem in within["science"]]
        return [problem for domain in self.domains for problem in self._limited(within[domain], domain)]

    def _within(self, counted: Sequence[Counted], domain: str) -> list[Problem]:
        low, high = self.ranges[domain]
        return [
            each.problem for each in counted if each.problem.domain == domain and low <= each.correct <= high
        ]

    def _with_unsolved(
        self, counted: Sequence[Counted], domain: str, found: list[Problem], size: int
    ) -> list[Problem]:
        unsolved = [each.problem for each in counted if each.problem.domain == domain and each.correct == 0]
        taken = {problem.id for problem in found}
        spare = [problem for problem in unsolved if problem.id not in taken]
        wanted = min(size - len(found), len(spare))
        return found + random.Random(f"{self.seed}|{domain}").sample(spare, wanted)

    def _limited(self, problems: list[Problem], domain: str) -> list[Problem]:
        if self.limit is None or len(problems) <= self.limit:
            return problems
        return random.Random(f"{self.seed}|limit|{domain}").sample(problems, self.limit)


def _with_instruction(problem: Problem, rng: random.Random) -> Problem:
    """The same question with a random instruction; a prompt that is not in the chat format is not changed."""
    template = rng.choice(SCIENCE_INSTRUCTIONS)
    question = question_of(problem.prompt)
    if question is None:
        return problem
    return replace(problem, prompt=chat_prompt(template.format(question=question)))
