"""Each named method on one small batch, worked by hand from its own paper.

Two prompts with two answers each. Answers have 2, 1, 1 and 4 tokens; the rewards are 1, 0 and 3, 1. All tokens of an
answer share one ratio pi / pi_old: 1.25, 0.5, 0.9 and 1.5. Then by hand:

    answer   tokens  reward  less the mean  / deviation  less the other  ratio
    a             2       1            0.5            1               1   1.25
    b             1       0           -0.5           -1              -1   0.50
    c             1       3              1            1               2   0.90
    d             4       1             -1           -1              -2   1.50

The reference is the policy, so no KL term adds anything, except where a test moves it.
"""

from __future__ import annotations

import math

import pytest
import torch

from megatron_prism.errors import ConfigError
from megatron_prism.generation.engine import Completion
from megatron_prism.rl.objective import (
    LossInputs,
    Objective,
    advantages,
    policy_loss,
    sequence_log_ratio,
    token_weights,
)
from megatron_prism.rl.rewards import RewardSettings, reward
from megatron_prism.rl.rollout import Answer, Group
from megatron_prism.rl.settings import LoopSettings
from megatron_prism.rl.variants import VARIANTS, variant
from megatron_prism.verification.grade import Grade
from megatron_prism.verification.problems import Problem

LENGTHS = torch.tensor([[2, 1], [1, 4]])
REWARDS = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
MAX_NEW_TOKENS = 10
THOUGHT = "<think>so</think> 4"


def objective_value(name: str, ratios=(1.25, 0.5, 0.9, 1.5), sampler=0.0, reference=0.0) -> float:
    """J of the batch; `sampler` and `reference` are log pi_old - log pi_sampler and log pi_ref - log pi."""
    o = variant(name).objective
    lengths = LENGTHS.flatten()
    texts = torch.repeat_interleave(torch.arange(4), lengths)[None]
    policy = torch.linspace(-2.0, -0.5, 8, dtype=torch.float64)[None]
    old = policy - torch.tensor(ratios, dtype=torch.float64).log()[texts]
    ones = torch.ones(1, 8)
    inputs = LossInputs(
        logprobs=policy,
        old_logprobs=old,
        sampler_logprobs=old - sampler,
        reference_logprobs=policy + reference,
        advantages=advantages(REWARDS, o).flatten()[texts],
        weights=token_weights(LENGTHS, o, MAX_NEW_TOKENS).flatten()[texts],
        mask=ones,
        sequence_log_ratio=sequence_log_ratio(policy, old, ones, texts),
    )
    loss, _ = policy_loss(inputs, o)
    return -loss.item()


def test_paper():
    # Clipped to 1.2: a, at 1.25. b, less probable by more than 0.2: 0.8. d is not clipped: it got more probable.
    first, second = (2 * 1.2 - 0.8) / 3, (0.9 - 4 * 1.5) / 5
    assert objective_value("paper") == pytest.approx((first + second) / 2)
    # The sampler reported 3 times lower probabilities, so all weights are capped at 2. At 1.5 times none is.
    assert objective_value("paper", sampler=math.log(3)) == pytest.approx(first + second)
    assert objective_value("paper", sampler=math.log(1.5)) == pytest.approx(0.75 * (first + second))
    # The reference gives each token twice the probability: k3 is 2 - 1 - ln 2.
    moved = objective_value("paper", reference=math.log(2))
    assert moved == pytest.approx((first + second) / 2 - 0.05 * (1 - math.log(2)))


def test_grpo():
    # Every answer's mean counts the same, however long it is.
    value = (1.2 - 0.8 + 0.9 - 1.5) / 4
    assert objective_value("grpo") == objective_value("grpo", sampler=1.0) == pytest.approx(value)
    moved = objective_value("grpo", reference=math.log(2))
    assert moved == pytest.approx(value - 0.04 * (1 - math.log(2)))


def test_dapo():
    # 1.25 lies below 1.28. All 8 tokens count the same.
    value = (2 * 1.25 - 0.8 + 0.9 - 4 * 1.5) / 8
    assert objective_value("dapo") == objective_value("dapo", reference=9.0) == pytest.approx(value)
    assert objective_value("dapo", (1.4, 0.5, 0.9, 1.5)) == pytest.approx(value + 2 * 0.03 / 8)


def test_dapo_rewards_its_sampling_and_its_updates():
    dapo = variant("dapo")
    settings = dapo.rewards(20480)
    assert (settings.overlong_tokens, settings.overlong_buffer) == (20480, 4096)

    def value(right: bool, length: int) -> float:
        return reward(
            right,
            THOUGHT,
            range(length),
            finish_reason="length" if length == 20480 else "stop",
            settings=settings,
        ).value

    assert [value(right, 100) for right in (True, False)] == [1, -1]
    # 16,384 tokens are free, half of the rest costs a half, and all of it 1.
    assert [value(True, n) for n in (16384, 16384 + 2048, 20480)] == [1, 0.5, 0]
    assert value(False, 20480) == -2
    assert dapo.rewards(100).overlong_buffer == 20
    loop = dapo.loop(LoopSettings(prompts_per_step=512, samples_per_prompt=16, reference_interval=7))
    assert (loop.dynamic_sampling, loop.group_filter) == (True, "accuracy")
    # 512 x 16 answers in updates of 512.
    assert loop.prompts_per_step * loop.samples_per_prompt / loop.minibatches == 512
    assert loop.reference_interval == 7


def group(*answers):
    """A group of answers, each (right, tokens), rewarded by DAPO's rules for at most 100 tokens."""
    settings = variant("dapo").rewards(100)
    made = []
    for right, length in answers:
        completion = Completion(THOUGHT, list(range(length)), [0.0] * length, "stop")
        given = reward(right, completion.text, completion.token_ids, finish_reason="stop", settings=settings)
        made.append(Answer(completion, Grade(right, "correct" if right else "wrong"), given))
    return Group(Problem("p", "math", "P", "math", "4"), made)


def test_dapo_keeps_groups_by_accuracy():
    mixed, long = group((True, 10), (False, 10)), group((False, 10), (False, 95))
    assert len(set(long.rewards)) == 2, "one lost something for its length"
    assert [each.has_signal("accuracy") for each in (mixed, long)] == [True, False]
    assert [each.has_signal("reward") for each in (mixed, long)] == [True, True]
    alike = group((True, 10), (True, 10))
    assert not alike.has_signal("accuracy")
    assert not alike.has_signal("reward")
    with pytest.raises(ConfigError, match="group_filter='accurcy' is not possible; did you mean 'accuracy'"):
        LoopSettings(group_filter="accurcy")


def test_dr_grpo():
    # The rewards' deviation does not divide, and an answer's sum is divided by the most tokens, whatever its length.
    value = (2 * 0.5 * 1.2 - 0.5 * 0.8 + 1 * 0.9 - 4 * 1 * 1.5) / (4 * MAX_NEW_TOKENS)
    assert objective_value("dr_grpo") == objective_value("dr_grpo", reference=9.0) == pytest.approx(value)


def test_rloo():
    # On-policy the value is the mean of (reward less the others' mean) times tokens, up to the constant ...
    value = (2 * 1 - 1 + 2 - 4 * 2) / (4 * MAX_NEW_TOKENS)
    assert objective_value("rloo", (1.0,) * 4) == pytest.approx(value)
    # ... and the gradient REINFORCE's: that advantage at every token of the answer.
    o = variant("rloo").objective
    policy = torch.full((1, 8), -1.0, dtype=torch.float64, requires_grad=True)
    texts = torch.repeat_interleave(torch.arange(4), LENGTHS.flatten())[None]
    scaled = advantages(REWARDS, o).flatten()[texts]
    weights = token_weights(LENGTHS, o, MAX_NEW_TOKENS).flatten()[texts]
    loss, _ = policy_loss(LossInputs(policy, policy.detach(), scaled, weights, torch.ones(1, 8)), o)
    loss.backward()
    assert (-policy.grad * 4 * MAX_NEW_TOKENS)[0].tolist() == pytest.approx([1, 1, -1, 2, -2, -2, -2, -2])


def test_gspo():
    # One ratio per answer, the geometric mean over its tokens; the bounds are 0.9997 and 1.0004.
    assert objective_value("gspo") == pytest.approx((1.0004 - 0.9997 + 0.9 - 1.5) / 4)
    assert objective_value("gspo", (1.0003, 0.9998, 1.0, 1.0)) == pytest.approx((1.0003 - 0.9998) / 4)
    loop = variant("gspo").loop(LoopSettings())
    assert (loop.minibatches, loop.dynamic_sampling) == (4, False)


def test_gspos_ratio_is_the_geometric_mean():
    policy, old = torch.tensor([[0.5, 0.1]]).log(), torch.tensor([[0.25, 0.4]]).log()
    ratio = sequence_log_ratio(policy, old, torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.int64)).exp()
    assert ratio.tolist() == [pytest.approx([math.sqrt(2 * 0.25)] * 2)]


@pytest.mark.parametrize("name", ["paper", "grpo", "dr_grpo", "rloo"])
def test_the_others_update_once_and_reward_as_usual(name):
    found = variant(name)
    assert found.loop(LoopSettings(minibatches=3)) == LoopSettings()
    assert found.rewards(100) == RewardSettings()


def test_the_paper_is_the_default():
    assert variant("paper").objective == Objective()


def test_no_two_are_the_same():
    assert len({repr(each) for each in VARIANTS.values()}) == len(VARIANTS) == 6


def test_a_variant_is_the_callers_own():
    variant("grpo").objective.kl_coefficient = 7.0
    assert variant("grpo").objective.kl_coefficient == 0.04


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="variant='drgrpo' is not possible; did you mean 'dr_grpo'"):
        variant("drgrpo")
    with pytest.raises(ConfigError, match="known: dapo, dr_grpo, grpo, gspo, paper, rloo"):
        variant("xyz")
