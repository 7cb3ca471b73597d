"""From prompts to graded answers with rewards: each data-parallel rank samples its share, and all ranks get all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_prism.generation.engine import Completion, Engine, SamplingParams
from megatron_prism.rl.rewards import Reward, RewardSettings, reward
from megatron_prism.verification.grade import Grade, GradeItem, grade_all
from megatron_prism.verification.pool.grading_pool import GradingPool
from megatron_prism.verification.problems import Problem
from megatron_prism.verification.sandbox.isolation import STRONG


@dataclass(frozen=True)
class Answer:
    """A sampled answer with its grade and its reward."""

    completion: Completion
    grade: Grade
    reward: Reward


@dataclass(frozen=True)
class Group:
    """The answers to one prompt."""

    problem: Problem
    answers: list[Answer]

    @property
    def correct(self) -> int:
        """Number of answers that are right and in the required format."""
        return sum(answer.reward.correct for answer in self.answers)

    @property
    def pass_rate(self) -> float:
        return self.correct / len(self.answers)

    @property
    def rewards(self) -> list[float]:
        return [answer.reward.value for answer in self.answers]

    def has_signal(self, group_filter: str) -> bool:
        """Whether the group gives a gradient under this filter of `LoopSettings`.

        The rewards must differ, because otherwise all advantages are 0. Filter "accuracy" also needs right and wrong
        answers.
        """
        differ = len(set(self.rewards)) > 1
        return differ and (group_filter == "reward" or 0 < self.correct < len(self.answers))


class Rollouts:
    """Samples, grades and rewards prompts on all ranks together.

    Args:
        engine: this rank's sampler; the ranks of one model replica call it together.
        pool: the grading pool on the first rank of each model replica; None on the other ranks.
        share: (rank, size) of this model replica, which select its share of the prompts.
        sandbox: how programs among the answers are isolated, "strong" or "weak".
        push_weights: copies the model's new weights to the engine; None if the engine reads the model directly.
    """

    def __init__(
        self,
        engine: Engine,
        pool: GradingPool | None,
        sampling: SamplingParams,
        rewards: RewardSettings,
        *,
        share: tuple[int, int] = (0, 1),
        sandbox: str = STRONG,
        push_weights: Callable[[], None] | None = None,
    ) -> None:
        self.engine, self.pool = engine, pool
        self.sampling, self.rewards, self.share, self.sandbox = sampling, rewards, share, sandbox
        self.push_weights = push_weights

    def groups(self, problems: Sequence[Problem], samples: int, seed: str) -> list[Group]:
        """`samples` answers to each problem, in order, the same on every rank.

        Args:
            seed: the same seed and weights give the same answers in every parallel layout.
        """
        rank, size = self.share
        own = list(problems[rank::size])
        seeds = [_number(f"{self.sampling.seed}|{seed}|{index}") for index in range(len(problems))]
        completions: list[list[Completion]] = []
        if own:
            prompts = [problem.prompt for problem in own]
            completions = self.engine.generate(
                prompts, self.sampling, samples=samples, seeds=seeds[rank::size]
            )
        graded = None if self.pool is None else self._graded(own, completions, self.pool)
        return _gathered(graded, len(problems))

    def _graded(
        self, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]], pool: GradingPool
    ) -> list[Group]:
        pairs = list(zip(problems, completions, strict=True))
        items = [GradeItem(p.kind, c.text, p.answer, p.tests) for p, row in pairs for c in row]
        grades = iter(grade_all(items, pool, sandbox=self.sandbox))
        return [Group(problem, [self._answer(c, next(grades)) for c in row]) for problem, row in pairs]

    def _answer(self, completion: Completion, grade: Grade) -> Answer:
        value = reward(
            grade.correct,
            completion.text,
            completion.token_ids,
            finish_reason=completion.finish_reason,
            settings=self.rewards,
        )
        return Answer(completion, grade, value)


def _gathered(own: list[Group] | None, count: int) -> list[Group]:
    """The groups of all data-parallel ranks, in the order of the problems."""
    import torch.distributed as dist

    shares: list[list[Group] | None] = [own]
    if dist.is_initialized() and dist.get_world_size() > 1:
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, own)
    # There is one share per model replica. Their order is right, because Megatron numbers the ranks by replica.
    per_replica = [share for share in shares if share is not None]
    return [per_replica[index % len(per_replica)][index // len(per_replica)] for index in range(count)]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
