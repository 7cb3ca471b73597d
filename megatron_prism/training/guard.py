"""Guards the weights: an update whose loss or gradient is not finite is not applied, and a loss that jumps is noticed.

The decision falls between the norm of the gradients and the update, and all ranks take the same one. So a step that is
not applied leaves weights, moments and the optimizer's step count as they were.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import not_negative, one_of, positive
from megatron_prism.pipeline.stage import tuning

REACTIONS = ("log", "skip", "rollback")
# A z-score needs a spread, which a few losses do not show.
FEWEST_LOSSES = 32
# The spread of a constant loss is zero; smaller jumps than this share of the mean are never spikes.
SMALLEST_SPREAD = 1e-3


@dataclass
class GuardSettings:
    """What to do when a step goes wrong. None of it changes a run in which no step does.

    Attributes:
        max_skipped: steps in a row whose update may be left out; with one more the run stops, and keeps the checkpoint
            before the first of them.
        spike_zscore: a loss that lies more than this many standard deviations above the mean of the last losses is a
            spike; 0 switches this off.
        spike_window: how many losses the mean and the deviation are taken of; detection begins after 32.
        on_spike: 'log' applies the update; 'skip' does not; 'rollback' returns to the last checkpoint, and leaves out
            the batch with the spike when its turn comes.
    """

    max_skipped: int = tuning(5)
    spike_zscore: float = tuning(6.0)
    spike_window: int = tuning(128)
    on_spike: str = tuning("log")

    def __post_init__(self) -> None:
        one_of(self.on_spike, REACTIONS, "guard.on_spike")
        positive(self, "spike_window", group="guard")
        not_negative(self, "max_skipped", "spike_zscore", group="guard")
        if self.spike_zscore and self.spike_window < FEWEST_LOSSES:
            raise ConfigError(
                f"guard.spike_window={self.spike_window}: a spread needs at least {FEWEST_LOSSES} losses; "
                "spike_zscore=0 switches the detection off"
            )


class Verdict(IntEnum):
    """How a step went; ranks that differ agree on the largest."""

    FINE = 0
    SPIKE = 1
    NOT_FINITE = 2


class Guard:
    """Judges each update of a run.

    Attributes:
        verdict: on the last update.
        reason: why the last update was not fine, for a reader.
        streak: updates in a row, up to the last one, that were not applied.
        skipped: all updates that were not applied.
    """

    def __init__(self, settings: GuardSettings, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        self.settings = settings
        self.losses = deque(map(float, saved.get("losses", ())), maxlen=settings.spike_window)
        self.skipped = int(saved.get("skipped", 0))
        self.streak, self.verdict, self.reason = 0, Verdict.FINE, ""

    def state(self) -> dict[str, Any]:
        """For a checkpoint, so that a resumed run judges as an unbroken one."""
        return {"losses": list(self.losses), "skipped": self.skipped}

    @property
    def must_stop(self) -> bool:
        return self.streak > self.settings.max_skipped

    def accept(self, loss: float, grad_norm: float) -> bool:
        """Whether the update may be applied. All ranks call this once per update and get the same answer."""
        self.verdict = _agree(self._judge(loss, grad_norm))
        self.reason = self._describe(loss, grad_norm)
        if self.verdict is Verdict.NOT_FINITE or (
            self.verdict is Verdict.SPIKE and self.settings.on_spike != "log"
        ):
            self.streak += 1
            self.skipped += 1
            return False
        self.losses.append(loss)
        self.streak = 0
        return True

    def zscore(self, loss: float) -> float:
        """Standard deviations of `loss` above the mean of the last losses; 0 while there are too few."""
        if len(self.losses) < FEWEST_LOSSES:
            return 0.0
        mean = math.fsum(self.losses) / len(self.losses)
        variance = math.fsum((each - mean) ** 2 for each in self.losses) / len(self.losses)
        spread = max(math.sqrt(variance), SMALLEST_SPREAD * abs(mean))
        return (loss - mean) / spread if spread else 0.0

    def _judge(self, loss: float, grad_norm: float) -> Verdict:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return Verdict.NOT_FINITE
        bound = self.settings.spike_zscore
        return Verdict.SPIKE if bound and self.zscore(loss) > bound else Verdict.FINE

    def _describe(self, loss: float, grad_norm: float) -> str:
        if self.verdict is Verdict.SPIKE:
            return f"loss {loss:.4f} is {self.zscore(loss):.1f} standard deviations above the last ones"
        if self.verdict is Verdict.NOT_FINITE:
            return f"loss {loss:.4f} or gradient norm {grad_norm:.3f} is not finite"
        return ""


def _agree(own: Verdict) -> Verdict:
    """The worst verdict of all ranks. Floats that are summed on different ranks may differ in their last bit."""
    import torch
    import torch.distributed as dist

    from megatron_prism.platform.hardware import device

    worst = torch.tensor([int(own)], dtype=torch.int32, device=device())
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return Verdict(int(worst.item()))
