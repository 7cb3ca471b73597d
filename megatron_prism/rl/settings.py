"""Settings of the objective (objective.py) and of a step (step.py); this file does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import not_negative, one_of, positive

ESTIMATORS = ("k1", "k2", "k3")
RATIOS = ("token", "sequence")
NORMALIZATIONS = ("group_tokens", "batch_tokens", "sequence", "constant")
ADVANTAGES = ("group_std", "group_mean", "leave_one_out")


@dataclass
class Objective:
    """The objective's settings. Defaults are the paper's, and open-instruct's where the paper names none (docs/rl.md).

    Attributes:
        epsilon_low, epsilon_high: the ratio is clipped to [1 - low, 1 + high].
        tis_cap: C, the cap of the importance weight w; None switches importance sampling off (w = 1).
        kl_coefficient: beta; with 0 no reference model is kept.
        kl_estimator: estimator of KL(policy || reference) from one sample: 'k1', 'k2' or 'k3'
            (joschu.net/blog/kl-approx.html).
        ratio: 'token', or 'sequence' for the geometric mean over an answer's tokens (GSPO, arXiv 2507.18071).
        normalization: the divisor of the sum over tokens.
            'group_tokens': the number of tokens of the group, then the number of groups (the paper).
            'batch_tokens': the number of tokens of the batch (DAPO).
            'sequence': the number of tokens of each answer, then the number of answers (GRPO, arXiv 2402.03300).
            'constant': the number of answers times `max_new_tokens` (Dr.GRPO, arXiv 2503.20783).
        advantage: how rewards become advantages.
            'group_std': minus the group's mean, divided by its population standard deviation.
            'group_mean': minus the group's mean.
            'leave_one_out': minus the mean of the other answers (RLOO, arXiv 2402.14740).
        advantage_epsilon: eta, which is added to the standard deviation.
    """

    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    tis_cap: float | None = 2.0
    kl_coefficient: float = 0.05
    kl_estimator: str = "k3"
    ratio: str = "token"
    normalization: str = "group_tokens"
    advantage: str = "group_std"
    advantage_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        one_of(self.kl_estimator, ESTIMATORS, "kl_estimator")
        one_of(self.ratio, RATIOS, "ratio")
        one_of(self.normalization, NORMALIZATIONS, "normalization")
        one_of(self.advantage, ADVANTAGES, "advantage")
        # A comparison with NaN is false, so the condition is written positively and NaN is refused.
        if not 0 <= self.epsilon_low < 1:
            raise ConfigError(f"objective.epsilon_low={self.epsilon_low}: must be at least 0 and less than 1")
        not_negative(self, "epsilon_high", "kl_coefficient", "advantage_epsilon", group="objective")
        if self.tis_cap is not None:
            # null, and not a large number, switches the correction off.
            positive(self, "tis_cap", group="objective")


@dataclass
class LoopSettings:
    """Batch sizes, group selection and reference updates of a step.

    Attributes:
        prompts_per_step: groups of a step.
        samples_per_prompt: answers of a group.
        minibatches: optimizer steps per batch; with 1 the update is on-policy.
        group_filter: which groups are used for the update: those whose answers differ in "reward", or those with both
            right and wrong answers, "accuracy". The two differ only when length or repetition penalties are on.
        dynamic_sampling: sample more prompts until there are `prompts_per_step` such groups (DAPO).
        max_rounds: rounds of dynamic sampling, after which the step uses the groups it has.
        reference_alpha: weight of the policy in each soft update of the reference.
        reference_interval: steps between soft updates; 0 keeps the reference fixed.
    """

    prompts_per_step: int = 64
    samples_per_prompt: int = 16
    minibatches: int = 1
    group_filter: str = "reward"
    dynamic_sampling: bool = False
    max_rounds: int = 10
    reference_alpha: float = 0.6
    reference_interval: int = 0

    def __post_init__(self) -> None:
        one_of(self.group_filter, ("reward", "accuracy"), "group_filter")
        positive(self, "prompts_per_step", "samples_per_prompt", "minibatches", "max_rounds", group="loop")
        not_negative(self, "reference_alpha", most=1.0, group="loop")
        not_negative(self, "reference_interval", group="loop")
