"""The log-probability gate: trainer and sampler must say the same of the sampled tokens, and a step tells how nearly.

A sampler is another program than the trainer: other kernels, other precision, perhaps stale weights or another padding
of the vocabulary. What it says of its own tokens is compared with what the trainer says of them on every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_prism.errors import ConfigError, PrismError
from megatron_prism.pipeline.config import one_of
from megatron_prism.platform.console import get_logger

if TYPE_CHECKING:
    from torch import Tensor

ACTIONS = ("warn", "mask", "stop")

log = get_logger(__name__)


class GateStop(PrismError):
    """Trainer and sampler disagree by more than the gate allows."""


@dataclass
class GateSettings:
    """When the gate trips, and what happens then.

    Whatever the action, a token for which one side has no finite log-probability is left out of the step, and a NaN of
    the trainer's ends the run: it would be in every gradient, and then in every weight.

    Attributes:
        action: 'warn' says so; 'mask' leaves tokens past `worst_log_ratio` out of the step, too; 'stop' ends the run
            before any weight has moved.
        mean_ratio: highest mean over tokens of exp |log p_trainer - log p_sampler|. NeMo-RL calls it
            token_mult_prob_error: about 1.00 is healthy, above 1.05 is to be looked into.
        worst_log_ratio: highest |log p_trainer - log p_sampler| of a token.
    """

    action: str = "warn"
    mean_ratio: float = 1.05
    worst_log_ratio: float = 2.0

    def __post_init__(self) -> None:
        one_of(self.action, ACTIONS, "action")
        # Written so that NaN, past which nothing would ever be, is refused.
        if not self.worst_log_ratio > 0:
            raise ConfigError(f"worst_log_ratio={self.worst_log_ratio}: must be greater than zero")
        if not self.mean_ratio >= 1:
            raise ConfigError(
                f"mean_ratio={self.mean_ratio}: must be 1 or more, for it is 1 where both agree"
            )


@dataclass(frozen=True)
class Observation:
    """Of one micro-batch: the tokens that count, sums over them, and the worst.

    Attributes:
        mask: `[batch, seq]`, what the step may use.
        sums: tokens, sum of |d|, sum of exp |d|, tokens left out, tokens for which the trainer says NaN.
        worst: |d|, the text's number, log p_trainer, log p_sampler.
    """

    mask: Tensor
    sums: Tensor
    worst: Tensor


@dataclass(frozen=True)
class GateReport:
    """Of a step, over all ranks."""

    mean_abs: float
    max_abs: float
    mean_ratio: float
    masked: int
    tripped: bool

    def record(self) -> dict[str, float]:
        return {
            "mean_abs": self.mean_abs,
            "max_abs": self.max_abs,
            "mean_ratio": self.mean_ratio,
            "masked": self.masked,
        }


def observe(
    trainer: Tensor, sampler: Tensor, mask: Tensor, texts: Tensor, settings: GateSettings
) -> Observation:
    """Compare log-probabilities `[batch, seq]` where `mask` is 1; `texts` numbers the texts."""
    import torch

    counted = mask > 0
    gap = torch.where(counted, (trainer - sampler).abs().double(), 0.0)
    # A NaN on either side is no agreement.
    gap = torch.where(gap.isnan(), float("inf"), gap)
    bound = settings.worst_log_ratio if settings.action == "mask" else torch.finfo(gap.dtype).max
    kept = torch.where(gap > bound, 0.0, mask)
    ratios = torch.where(counted, gap.exp(), 0.0)
    broken = counted & trainer.isnan()
    sums = torch.stack([each.sum().double() for each in (mask, gap, ratios, mask - kept, broken)])
    place = int(gap.argmax())
    worst = [gap.flatten()[place], *(t.flatten()[place].double() for t in (texts, trainer, sampler))]
    return Observation(kept, sums, torch.stack(worst))


def conclude(observations: Sequence[Observation], settings: GateSettings, step: int) -> GateReport:
    """The step's report; every rank calls it, those without observations (inner pipeline stages) too.

    Raises:
        GateStop: if the gate trips and its action is 'stop', or the trainer says NaN.
    """
    import torch.distributed as dist

    from megatron_prism.training.trainer import sum_over_ranks

    tokens, gaps, ratios, masked, broken = sum_over_ranks([each.sums for each in observations], size=5)
    worst = max((each.worst.tolist() for each in observations), default=[0.0, 0.0, 0.0, 0.0])
    if dist.get_world_size() > 1:
        found: list[list[float]] = [worst] * dist.get_world_size()
        dist.all_gather_object(found, worst)
        worst = max(found)
    if broken:
        raise GateStop(
            f"step {step}: the trainer's log-probabilities of {int(broken)} of {int(tokens)} tokens are NaN: the model "
            "is broken; start again from a checkpoint before it was, with a lower learning rate"
        )
    tokens = max(1.0, tokens)
    report = GateReport(
        mean_abs=gaps / tokens,
        max_abs=worst[0],
        mean_ratio=ratios / tokens,
        masked=int(masked),
        tripped=worst[0] > settings.worst_log_ratio or ratios / tokens > settings.mean_ratio,
    )
    if report.tripped:
        said = (
            f"step {step}: trainer and sampler disagree: mean ratio {report.mean_ratio:.4f} (gate.mean_ratio="
            f"{settings.mean_ratio}), worst |log ratio| {report.max_abs:.3g} (gate.worst_log_ratio="
            f"{settings.worst_log_ratio}) in answer {int(worst[1])} of the batch, where the trainer says "
            f"{worst[2]:.4f} and the sampler {worst[3]:.4f}"
        )
        if settings.action == "stop":
            raise GateStop(f"{said}; look for stale weights, another precision or another vocabulary")
        if dist.get_rank() == 0:
            log.warning("%s%s", said, f"; {report.masked} tokens left out" if report.masked else "")
    return report
