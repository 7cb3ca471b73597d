"""What one step of reinforcement learning reports, and the means that metrics.jsonl gets of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_prism.rl.gate import GateReport
from megatron_prism.rl.prompts import rates_by_domain
from megatron_prism.rl.rollout import Group


@dataclass(frozen=True)
class Update:
    """The report of an optimizer step.

    Attributes:
        metrics: means over the answers' tokens on all ranks.
        applied: False if the guard refused the update, so that the weights stayed as they were.
    """

    loss: float
    grad_norm: float
    tokens: int
    rows: int
    metrics: dict[str, float]
    gate: GateReport
    applied: bool = True


@dataclass
class StepReport:
    """The groups, updates and times of a step.

    Attributes:
        groups: all that were sampled.
        consumed_prompts: position in the prompt order after this step.
        kept: number of groups used for the update.
        updates: one per optimizer step; empty if no group gave a gradient.
        seconds: wall time of each phase.
    """

    groups: list[Group]
    consumed_prompts: int
    kept: int
    updates: list[Update]
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The line of metrics.jsonl; docs/rl.md says what each entry means and which values are healthy."""
        groups, answers = self.groups, [answer for group in self.groups for answer in group.answers]
        lengths = [len(answer.completion.token_ids) for answer in answers]
        rates = [group.pass_rate for group in groups]
        record: dict[str, Any] = {
            "reward": sum(sum(group.rewards) for group in groups) / len(answers),
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
        applied = [update for update in self.updates if update.applied]
        if len(applied) < len(self.updates):
            record["skipped_updates"] = len(self.updates) - len(applied)
        if applied:
            last = applied[-1]
            tokens = sum(update.tokens for update in applied)
            record |= {
                "loss": sum(update.loss for update in applied) / len(applied),
                "grad_norm": last.grad_norm,
                "tokens": tokens,
                "rows": sum(update.rows for update in applied),
                **{
                    name: sum(u.metrics[name] * u.tokens for u in applied) / max(1, tokens)
                    for name in last.metrics
                },
                "gap": last.gate.record(),
            }
        return record
