"""The paper's algorithm and its relatives by name: what each sets in the objective, the loop and the rewards.

Settings that a method's own paper does not mention, such as the format gate, are those of the PRISM paper. Only the
PRISM method corrects for the sampler. The others have `tis_cap` null, which can be set if sampler and trainer differ.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.rl.rewards import RewardSettings
from megatron_prism.rl.settings import LoopSettings, Objective


@dataclass(frozen=True)
class Variant:
    """A method.

    Attributes:
        objective: settings of the loss.
        minibatches: optimizer steps per batch.
        dynamic_sampling, group_filter: as in `LoopSettings`.
        wrong: the reward of a wrong answer.
        overlong_share: the last share of `max_new_tokens`, over which the penalty of a long answer grows from 0 to 1.
            With 0 there is no such penalty, and an unfinished answer gets the reward `RewardSettings.unfinished`.
    """

    objective: Objective = field(default_factory=Objective)
    minibatches: int = 1
    dynamic_sampling: bool = False
    group_filter: str = "reward"
    wrong: float = 0.0
    overlong_share: float = 0.0

    def loop(self, settings: LoopSettings) -> LoopSettings:
        """`settings` with the changes of the method."""
        return replace(
            settings,
            minibatches=self.minibatches,
            dynamic_sampling=self.dynamic_sampling,
            group_filter=self.group_filter,
        )

    def rewards(self, max_new_tokens: int) -> RewardSettings:
        """The method's rewards for answers of up to `max_new_tokens` tokens."""
        if not self.overlong_share:
            return RewardSettings(wrong=self.wrong)
        return RewardSettings(
            wrong=self.wrong,
            unfinished=None,
            overlong_tokens=max_new_tokens,
            overlong_buffer=max(1, round(max_new_tokens * self.overlong_share)),
        )


VARIANTS = {
    # arXiv 2603.17074, section 15 and Table 21; docs/rl.md has the source of each default.
    "paper": Variant(),
    # DeepSeekMath, arXiv 2402.03300: equation 3 (each answer's mean over its tokens, then the mean over answers),
    # equation 4 (the k3 estimator), section 4.2 (KL coefficient 0.04, a single update per batch). It names no epsilon;
    # 0.2 is PPO's (arXiv 1707.06347, section 6.1).
    "grpo": Variant(
        Objective(tis_cap=None, kl_coefficient=0.04, normalization="sequence"),
    ),
    # arXiv 2503.14476: equation 8 (no KL), section 3.1 and 4.1 (0.2 and 0.28; 512 answers of a batch of 512 prompts x
    # 16 answers per update, 16 updates), equation 11 (dynamic sampling by accuracy), 3.3 (all tokens have the same
    # weight: the equation divides by the tokens of a group; its code, the DAPO recipe of verl, by those of the
    # mini-batch), equation 7 (1 and -1), equation 13 with 4,096 of 20,480 tokens (overlong punishment, the only
    # penalty of unfinished answers).
    "dapo": Variant(
        Objective(epsilon_high=0.28, tis_cap=None, kl_coefficient=0.0, normalization="batch_tokens"),
        minibatches=16,
        dynamic_sampling=True,
        group_filter="accuracy",
        wrong=-1.0,
        overlong_share=4096 / 20480,
    ),
    # arXiv 2503.20783, section 3.2: the loss is not divided by the answer's length, nor the advantage by the deviation
    # of the rewards. The sum over tokens is divided by a constant (the generation budget, its listing 1), without KL.
    "dr_grpo": Variant(
        Objective(tis_cap=None, kl_coefficient=0.0, normalization="constant", advantage="group_mean"),
    ),
    # arXiv 2402.14740, section 3: REINFORCE on the sum of an answer's log-probabilities, with the mean reward of the
    # other answers as the baseline. With one update per batch the ratio is 1 and nothing is clipped. The constant
    # divisor differs from the method's by the factor `max_new_tokens`. Its KL is part of the reward; verified
    # rewards have none.
    "rloo": Variant(
        Objective(tis_cap=None, kl_coefficient=0.0, normalization="constant", advantage="leave_one_out"),
    ),
    # arXiv 2507.18071: equations 5 to 7, section 5.1 (3e-4 and 4e-4, four mini-batches). It leaves out the KL term, and
    # its authors ran without it (volcengine/verl, pull request 2775).
    "gspo": Variant(
        Objective(
            epsilon_low=3e-4,
            epsilon_high=4e-4,
            tis_cap=None,
            kl_coefficient=0.0,
            ratio="sequence",
            normalization="sequence",
        ),
        minibatches=4,
    ),
}


def variant(name: str) -> Variant:
    """A copy of the method of this name, which the caller may change.

    Raises:
        ConfigError: if no method has this name.
    """
    if name not in VARIANTS:
        raise ConfigError(f"variant={name!r} is not possible{suggest(name, VARIANTS)}")
    return copy.deepcopy(VARIANTS[name])
