"""The learning rate as a function of the step only, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import one_of, positive

STYLES = ("cosine", "linear", "exponential", "constant")


@dataclass
class Schedule:
    """Linear warm-up to `lr`, then decay to `lr * final_factor` at the last step.

    'exponential' is the schedule of dolomite-engine, which the paper names for its long-context phase:
    lr * (a exp(-x) + b) with a = (1-f) e / (e-1) and b = (f e - 1) / (e-1), where x in [0, 1] is the decay progress
    and f is `final_factor`.
    """

    lr: float = 3e-4
    style: str = "cosine"
    warmup_steps: int = 0
    final_factor: float = 0.1

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self.style, STYLES, "schedule.style")
        if self.warmup_steps < 0 or not 0 <= self.final_factor <= 1:
            raise ConfigError(
                f"schedule: warmup_steps={self.warmup_steps} must be >= 0, and final_factor={self.final_factor} "
                "must be in [0, 1]"
            )

    def at(self, step: int, steps: int) -> float:
        """Learning rate of `step` (counted from 0) in a run of `steps`."""
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
