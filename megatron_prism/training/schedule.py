"""The learning rate as a function of the step only, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import not_negative, one_of, positive

# A step of Adam changes a weight by about the learning rate, and weights are below 1.
LARGEST_RATE = 1000.0
STYLES = ("cosine", "linear", "exponential", "constant")


@dataclass
class Schedule:
    """Linear warm-up to `lr`, then decay to `lr * final_factor` at the schedule's last step.

    Attributes:
        steps: the length of the schedule; null: the run's. A schedule whose length is named lets the run be prolonged:
            with more steps the same run goes on. After its end, the rate stays at the final one.

    'exponential' is the schedule of dolomite-engine, which the paper names for its long-context phase:
    lr * (a exp(-x) + b) with a = (1-f) e / (e-1) and b = (f e - 1) / (e-1), where x in [0, 1] is the decay progress
    and f is `final_factor`.
    """

    lr: float = 3e-4
    style: str = "cosine"
    warmup_steps: int = 0
    final_factor: float = 0.1
    steps: int | None = None

    def __post_init__(self) -> None:
        positive(self, "lr", group="schedule", most=LARGEST_RATE)
        not_negative(self, "warmup_steps", group="schedule")
        one_of(self.style, STYLES, "schedule.style")
        if self.steps is not None:
            positive(self, "steps", group="schedule")
        if not 0 <= self.final_factor <= 1:
            raise ConfigError(f"schedule.final_factor={self.final_factor}: must be in [0, 1]")

    def mismatch(self, steps: int) -> str:
        """What a reader should know if the schedule does not end with the run of `steps`; empty if it does."""
        length = self.length(steps)
        if self.warmup_steps >= steps:
            return f"schedule.warmup_steps={self.warmup_steps}: the run ends after {steps} steps, before its peak rate"
        if length > steps and self.style != "constant":
            return (
                f"schedule.steps={length} is longer than the run of {steps} steps, so the learning rate ends at "
                f"{self.at(steps - 1, steps):.2e} and not at {self.at(length, steps):.2e}"
            )
        if length < steps and self.style != "constant":
            return (
                f"schedule.steps={length} ends before the run of {steps} steps, so the learning rate stays at "
                f"{self.at(length, steps):.2e} in the last {steps - length} steps"
            )
        return ""

    def length(self, steps: int) -> int:
        """The length of the schedule in a run of `steps`."""
        return steps if self.steps is None else self.steps

    def at(self, step: int, steps: int) -> float:
        """Learning rate of `step` (counted from 0) in a run of `steps`."""
        steps = self.length(steps)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        x = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        f = self.final_factor
        if self.style == "cosine":
            factor = f + (1 - f) * (1 + math.cos(math.pi * x)) / 2
        elif self.style == "linear":
            factor = 1 - (1 - f) * x
        elif self.style == "exponential":
            factor = ((1 - f) * math.e * math.exp(-x) + f * math.e - 1) / (math.e - 1)
        else:
            factor = 1.0
        return self.lr * factor
