"""One step of reinforcement learning: prompts, answers, rewards, advantages, update, reference, in that order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch

from megatron_prism.errors import DataError
from megatron_prism.rl.micro_batches import TrainingText
from megatron_prism.rl.objective import advantages, token_weights
from megatron_prism.rl.policy import Policy, Update
from megatron_prism.rl.prompts import PromptOrder
from megatron_prism.rl.rollout import Group, Rollouts
from megatron_prism.rl.settings import LoopSettings, Objective
from megatron_prism.rl.step_report import StepReport
from megatron_prism.training.guard import Guard
from megatron_prism.verification.problems import Problem


class RLTrainer:
    """Makes the steps of a run.

    Args:
        problems: in the order of the prompts file; each step takes the next ones of a shuffled order.
        prompt_ids: tokens of each problem's prompt.
        max_new_tokens: the longest answer that can be sampled.
        seed: of the prompt order.
        guard: judges every update; None applies all.

    Raises:
        DataError: if two problems have the same id.
    """

    def __init__(
        self,
        policy: Policy,
        rollouts: Rollouts,
        *,
        problems: Sequence[Problem],
        prompt_ids: Sequence[list[int]],
        settings: LoopSettings,
        max_new_tokens: int,
        seed: int,
        guard: Guard | None = None,
    ) -> None:
        self.policy, self.rollouts, self.settings = policy, rollouts, settings
        self.problems, self.guard = problems, guard
        self.order = PromptOrder(len(problems), seed)
        self.max_new_tokens = max_new_tokens
        self._ids = {problem.id: ids for problem, ids in zip(problems, prompt_ids, strict=True)}
        if len(self._ids) < len(problems):
            raise DataError("two prompts have the same id; ids must be unique over all domains")

    def step(self, step: int, consumed_prompts: int, lr: float) -> StepReport:
        """Make step number `step` (from 1), starting at position `consumed_prompts` of the prompt order."""
        timer = _PhaseTimer()
        groups, consumed = self._sample_groups(step, consumed_prompts)
        kept = [group for group in groups if group.has_signal(self.settings.group_filter)]
        kept = kept[: self.settings.prompts_per_step]
        timer.finish_phase("rollout")
        updates = self._update(kept, step, lr, timer) if kept else []
        interval = self.settings.reference_interval
        if interval and step % interval == 0:
            self.policy.soft_update_reference(self.settings.reference_alpha)
        return StepReport(groups, consumed, len(kept), updates, timer.seconds)

    def _sample_groups(self, step: int, consumed: int) -> tuple[list[Group], int]:
        """The step's groups, and the position in the prompt order after them."""
        wanted, settings = self.settings.prompts_per_step, self.settings
        groups: list[Group] = []
        for attempt in range(settings.max_rounds if settings.dynamic_sampling else 1):
            chosen = [self.problems[index] for index in self.order.take(consumed, wanted)]
            consumed += wanted
            groups += self.rollouts.groups(
                chosen, settings.samples_per_prompt, f"step {step} round {attempt}"
            )
            if sum(group.has_signal(settings.group_filter) for group in groups) >= wanted:
                break
        return groups, consumed

    def _update(self, groups: Sequence[Group], step: int, lr: float, timer: _PhaseTimer) -> list[Update]:
        """One optimizer step per minibatch of the groups."""
        parts = [
            self.policy.micro_batches(
                training_texts(part, self._ids, self.policy.objective, self.max_new_tokens)
            )
            for part in _split(groups, self.settings.minibatches)
        ]
        for part in parts:
            self.policy.compute_reference_logprobs(part)
            if len(parts) > 1:
                self.policy.compute_old_logprobs(part)
        timer.finish_phase("logprobs")
        accept = None if self.guard is None else self.guard.accept
        updates = [self.policy.update(part, lr, step, accept=accept) for part in parts]
        timer.finish_phase("update")
        if self.rollouts.push_weights:
            self.rollouts.push_weights()
            timer.finish_phase("weights")
        return updates


def training_texts(
    groups: Sequence[Group], prompt_ids: dict[str, list[int]], objective: Objective, max_new_tokens: int
) -> list[TrainingText]:
    """Every answer of the groups with its advantage and the weight of its tokens."""
    rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
    lengths = torch.tensor([[len(a.completion.token_ids) for a in group.answers] for group in groups])
    scaled = advantages(rewards, objective).tolist()
    weights = token_weights(lengths, objective, max_new_tokens).tolist()
    return [
        TrainingText(
            prompt_ids[group.problem.id],
            answer.completion.token_ids,
            answer.completion.logprobs,
            scaled[row][column],
            weights[row][column],
        )
        for row, group in enumerate(groups)
        for column, answer in enumerate(group.answers)
    ]


def _split(groups: Sequence[Group], count: int) -> list[Sequence[Group]]:
    """`groups` in at most `count` parts of nearly equal size, none of them empty."""
    count = min(count, len(groups))
    edges = [len(groups) * part // count for part in range(count + 1)]
    return [groups[start:end] for start, end in pairwise(edges)]


class _PhaseTimer:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    def finish_phase(self, name: str) -> None:
        """Record the time since the last phase under this name."""
        now = time.perf_counter()
        self.seconds[name], self._started = now - self._started, now
