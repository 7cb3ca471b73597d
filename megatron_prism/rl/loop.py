"""One step of reinforcement learning: prompts, answers, rewards, advantages, update, reference, in that order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from megatron_prism.errors import DataError
from megatron_prism.rl.micro_batches import TrainingText
from megatron_prism.rl.objective import advantages, token_weights
from megatron_prism.rl.policy import Policy, Update
from megatron_prism.rl.prompts import PromptOrder, rates_by_domain
from megatron_prism.rl.rollout import Group, Rollouts
from megatron_prism.rl.settings import LoopSettings, Objective
from megatron_prism.verification.problems import Problem


@dataclass
class StepReport:
    """What happened in a step; `updates` is empty where every group had equal rewards."""

    groups: list[Group]
    consumed_prompts: int
    kept: int
    updates: list[Update]
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Means for metrics.jsonl; see docs/rl.md for what each is and what is healthy."""
        groups, answers = self.groups, [answer for group in self.groups for answer in group.answers]
        lengths = [len(answer.completion.token_ids) for answer in answers]
        rates = [group.pass_rate for group in groups]
        record: dict[str, Any] = {
            "reward": sum(sum(group.values) for group in groups) / len(answers),
            "pass_rate": rates_by_domain([group.problem for group in groups], rates),
            "format_rate": sum(answer.reward.format_ok for answer in answers) / len(answers),
            "solve_none": sum(rate == 0 for rate in rates) / len(rates),
            "solve_all": sum(rate == 1 for rate in rates) / len(rates),
            "groups": len(groups),
            "dropped_groups": len(groups) - self.kept,
            "mean_length": sum(lengths) / len(lengths),
            "max_length": max(lengths),
            "truncated": sum(a.completion.finish_reason == "length" for a in answers) / len(answers),
            "consumed_prompts": self.consumed_prompts,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }
        if self.updates:
            last = self.updates[-1]
            tokens = sum(update.tokens for update in self.updates)
            record |= {
                "loss": sum(update.loss for update in self.updates) / len(self.updates),
                "grad_norm": last.grad_norm,
                "tokens": tokens,
                "rows": sum(update.rows for update in self.updates),
                **{
                    name: sum(u.metrics[name] * u.tokens for u in self.updates) / max(1, tokens)
                    for name in last.metrics
                },
                "gap": last.gate.record(),
            }
        return record


class Loop:
    """The pieces of a run, and its steps."""

    def __init__(
        self,
        policy: Policy,
        rollouts: Rollouts,
        problems: Sequence[Problem],
        prompt_ids: Sequence[list[int]],
        settings: LoopSettings,
        most_tokens: int,
        seed: int,
    ) -> None:
        self.policy, self.rollouts, self.settings = policy, rollouts, settings
        self.problems, self.prompt_ids = problems, prompt_ids
        self.order = PromptOrder(len(problems), seed)
        self.most_tokens = most_tokens
        self._ids = {problem.id: ids for problem, ids in zip(problems, prompt_ids, strict=True)}
        if len(self._ids) < len(problems):
            raise DataError("two prompts have the same id; ids must differ over all domains")

    def step(self, step: int, consumed_prompts: int, lr: float) -> StepReport:
        """Step number `step` (from 1); `consumed_prompts` is how many the steps before it have reached."""
        clock = _Clock()
        groups, consumed = self._collect(step, consumed_prompts)
        kept = [group for group in groups if group.teaches(self.settings.keep_by)]
        kept = kept[: self.settings.prompts_per_step]
        clock.lap("rollout")
        updates: list[Update] = []
        if kept:
            parts = _parts(kept, self.settings.minibatches)
            batches = [
                self.policy.micro_batches(
                    training_texts(p, self._ids, self.policy.objective, self.most_tokens)
                )
                for p in parts
            ]
            for part in batches:
                self.policy.note_reference(part)
                if len(batches) > 1:
                    self.policy.note_old(part)
            clock.lap("logprobs")
            updates = [self.policy.update(part, lr, step) for part in batches]
            clock.lap("update")
            if self.rollouts.push_weights:
                self.rollouts.push_weights()
                clock.lap("weights")
        interval = self.settings.reference_interval
        if interval and step % interval == 0:
            self.policy.blend_reference(self.settings.reference_alpha)
        return StepReport(groups, consumed, len(kept), updates, clock.laps)

    def _collect(self, step: int, consumed: int) -> tuple[list[Group], int]:
        """The step's groups, and the position in the prompt order after them."""
        wanted, settings = self.settings.prompts_per_step, self.settings
        groups: list[Group] = []
        for attempt in range(settings.most_rounds if settings.dynamic_sampling else 1):
            chosen = [self.problems[index] for index in self.order.take(consumed, wanted)]
            consumed += wanted
            groups += self.rollouts.groups(
                chosen, settings.samples_per_prompt, f"step {step} round {attempt}"
            )
            if sum(group.teaches(settings.keep_by) for group in groups) >= wanted:
                break
        return groups, consumed


def training_texts(
    groups: Sequence[Group], prompt_ids: dict[str, list[int]], objective: Objective, most_tokens: int
) -> list[TrainingText]:
    """Every answer of the groups with its advantage and the weight of its tokens."""
    values = torch.tensor([group.values for group in groups], dtype=torch.float64)
    lengths = torch.tensor([[len(a.completion.token_ids) for a in group.answers] for group in groups])
    scaled = advantages(values, objective).tolist()
    weights = token_weights(lengths, objective, most_tokens).tolist()
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


def _parts(groups: Sequence[Group], count: int) -> list[Sequence[Group]]:
    """`groups` in `count` parts of nearly equal size, none empty."""
    count = min(count, len(groups))
    edges = [len(groups) * part // count for part in range(count + 1)]
    return [groups[start:end] for start, end in pairwise(edges)]


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._since = now - self._since, now
