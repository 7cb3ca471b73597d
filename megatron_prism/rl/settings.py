"""What a run of reinforcement learning is told, without a tensor: the objective (objective.py), the loop (loop.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import one_of

ESTIMATORS = ("k1", "k2", "k3")
RATIOS = ("token", "sequence")
NORMALIZATIONS = ("group_tokens", "batch_tokens", "sequence", "constant")
ADVANTAGES = ("group_std", "group_mean", "leave_one_out")


@dataclass
class Objective:
    """Which objective. The defaults are the paper's; where it is silent, open-instruct's (docs/rl.md).

    Attributes:
        epsilon_low, epsilon_high: the ratio is clipped to [1 - low, 1 + high].
        tis_cap: C; None leaves importance sampling out (w = 1).
        kl_coefficient: beta; 0 needs no reference.
        kl_estimator: of KL(policy || reference) from one sample: 'k1', 'k2' or 'k3'
            (joschu.net/blog/kl-approx.html).
        ratio: 'token', or 'sequence': the geometric mean over an answer's tokens (GSPO, arXiv 2507.18071).
        normalization: what the sum over tokens is divided by: the tokens of a 'group_tokens' group, and then the number
            of groups (the paper); all 'batch_tokens' (DAPO); the tokens of each 'sequence' and the number of them
            (GRPO, arXiv 2402.03300); or a 'constant', answers times most tokens (Dr.GRPO, arXiv 2503.20783).
        advantage: rewards less the group's mean, over its standard deviation ('group_std', of the population), or
            undivided ('group_mean'); or less the mean of the others ('leave_one_out', RLOO, arXiv 2402.14740).
        advantage_epsilon: eta.
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
        # Written so that NaN, which compares as false with everything, is refused.
        if not (0 <= self.epsilon_low < 1 and self.epsilon_high >= 0):
            raise ConfigError(
                f"epsilon_low={self.epsilon_low}, epsilon_high={self.epsilon_high}: need 0 <= low < 1 and high >= 0"
            )
        if self.tis_cap is not None and not self.tis_cap > 0:
            raise ConfigError(
                f"tis_cap={self.tis_cap}: must be greater than zero; null leaves the correction out"
            )
        if not (0 <= self.kl_coefficient < math.inf and 0 <= self.advantage_epsilon < math.inf):
            raise ConfigError(
                f"kl_coefficient={self.kl_coefficient}, advantage_epsilon={self.advantage_epsilon}: must be finite, "
                "and 0 or more"
            )


@dataclass
class LoopSettings:
    """What a step takes in and does.

    Attributes:
        prompts_per_step: groups of a step.
        samples_per_prompt: answers of a group.
        minibatches: optimizer steps per batch; with 1 the update is on-policy.
        keep_by: which groups an update takes: those whose answers differ in "reward", or those of which some are right
            and some wrong, "accuracy"; the two part where length or repetition cost something.
        dynamic_sampling: draw more prompts until there are `prompts_per_step` such groups (DAPO).
        most_rounds: of drawing, before the step goes on with what it has.
        reference_alpha: share of the policy in each soft update of the reference.
        reference_interval: steps between soft updates; 0 keeps the reference as it was at the start.
    """

    prompts_per_step: int = 64
    samples_per_prompt: int = 16
    minibatches: int = 1
    keep_by: str = "reward"
    dynamic_sampling: bool = False
    most_rounds: int = 10
    reference_alpha: float = 0.6
    reference_interval: int = 0

    def __post_init__(self) -> None:
        one_of(self.keep_by, ("reward", "accuracy"), "keep_by")
