"""The log-probability gate: it compares the sampler's and the trainer's log-probabilities of the sampled tokens.

The sampler is a different program than the trainer: it has other kernels or another precision, and may have stale
weights or another padding of the vocabulary. Every batch is therefore compared, and each step reports the differences.
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
    """Trainer and sampler differ by more than the gate allows, or the trainer computes NaN."""


@dataclass
class GateSettings:
    """When the gate trips, and what happens then.

    With every action, a token is left out of the step if one of its log-probabilities is not finite. A NaN of the
    trainer always ends the run, because it would spread to all gradients and weights.

    Attributes:
        action: 'warn' logs a warning; 'mask' also leaves tokens above `worst_log_ratio` out of the step; 'stop' ends
            the run before the weights change.
        mean_ratio: largest allowed mean over tokens of exp |log p_trainer - log p_sampler|. NeMo-RL calls it
            token_mult_prob_error; about 1.00 is healthy, and values above 1.05 should be investigated.
        worst_log_ratio: largest allowed |log p_trainer - log p_sampler| of a token.
    """

    action: str = "warn"
    mean_ratio: float = 1.05
    worst_log_ratio: float = 2.0

    def __post_init__(self) -> None:
        one_of(self.action, ACTIONS, "action")
        # A comparison with NaN is false, so the conditions are written positively and NaN is refused.
        if not self.worst_log_ratio > 0:
            raise ConfigError(f"worst_log_ratio={self.worst_log_ratio}: must be greater than zero")
        if not self.mean_ratio >= 1:
            raise ConfigError(
                f"mean_ratio={self.mean_ratio}: must be 1 or more, because it is 1 if both agree"
            )


@dataclass(frozen=True)
class Observation:
    """The comparison of one micro-batch; d is log p_trainer - log p_sampler of a token.

    Attributes:
        mask: `[batch, seq]`, 1 for the tokens that the step may use.
        sums: tokens, sum of |d|, sum of exp |d|, tokens left out, tokens for which the trainer computed NaN.
        largest_gap: of the token with the largest |d|: |d|, number of its text, log p_trainer, log p_sampler.
    """

    mask: Tensor
    sums: Tensor
    largest_gap: Tensor


@dataclass(frozen=True)
class GateReport:
    """The comparison of one step, over all ranks."""

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
    trainer: Tensor, sampler: Tensor, mask: Tensor, texts: Tensor, *, settings: GateSettings
) -> Observation:
    """Compare log-probabilities `[batch, seq]` where `mask` is 1; `texts` numbers the texts."""
    import torch

    counted = mask > 0
    gap = torch.where(counted, (trainer - sampler).abs().double(), 0.0)
    # A NaN on either side counts as an infinite gap.
    gap = torch.where(gap.isnan(), float("inf"), gap)
    bound = settings.worst_log_ratio if settings.action == "mask" else torch.finfo(gap.dtype).max
    kept = torch.where(gap > bound, 0.0, mask)
    ratios = torch.where(counted, gap.exp(), 0.0)
    nan_tokens = counted & trainer.isnan()
    sums = torch.stack([each.sum().double() for each in (mask, gap, ratios, mask - kept, nan_tokens)])
    index = int(gap.argmax())
    largest = [gap.flatten()[index], *(t.flatten()[index].double() for t in (texts, trainer, sampler))]
    return Observation(kept, sums, torch.stack(largest))


def conclude(observations: Sequence[Observation], settings: GateSettings, step: int) -> GateReport:
    """The report of a step. All ranks must call it, including pipeline stages without observations.

    Raises:
        GateStop: if the gate trips and its action is 'stop', or if a log-probability of the trainer is NaN.
    """
    import torch.distributed as dist

    from megatron_prism.training.text_losses import sum_over_ranks

    tokens, gaps, ratios, masked, nan_tokens = sum_over_ranks([each.sums for each in observations], size=5)
    largest = max((each.largest_gap.tolist() for each in observations), default=[0.0, 0.0, 0.0, 0.0])
    if dist.get_world_size() > 1:
        of_all_ranks: list[list[float]] = [largest] * dist.get_world_size()
        dist.all_gather_object(of_all_ranks, largest)
        largest = max(of_all_ranks)
    if nan_tokens:
        raise GateStop(
            f"step {step}: the trainer's log-probabilities of {int(nan_tokens)} of {int(tokens)} tokens are NaN, so "
            "the weights are unusable; start again from an earlier checkpoint with a lower learning rate"
        )
    tokens = max(1.0, tokens)
    report = GateReport(
        mean_abs=gaps / tokens,
        max_abs=largest[0],
        mean_ratio=ratios / tokens,
        masked=int(masked),
        tripped=largest[0] > settings.worst_log_ratio or ratios / tokens > settings.mean_ratio,
    )
    if report.tripped:
        message = (
            f"step {step}: trainer and sampler disagree: mean ratio {report.mean_ratio:.4f} (gate.mean_ratio="
            f"{settings.mean_ratio}), worst |log ratio| {report.max_abs:.3g} (gate.worst_log_ratio="
            f"{settings.worst_log_ratio}) in answer {int(largest[1])} of the batch, where the trainer has "
            f"{largest[2]:.4f} and the sampler {largest[3]:.4f}"
        )
        if settings.action == "stop":
            raise GateStop(f"{message}; look for stale weights, another precision or another vocabulary")
        if dist.get_rank() == 0:
            log.warning("%s%s", message, f"; {report.masked} tokens left out" if report.masked else "")
    return report
