"""What the objective refuses: rewards, answers and settings that have no meaning."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from megatron_prism.errors import ConfigError
from megatron_prism.rl.objective import LossInputs, advantages, policy_loss, token_weights
from megatron_prism.rl.settings import NORMALIZATIONS, Objective


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="not a finite number"):
        advantages(torch.tensor([[1.0, bad]]), Objective())


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least two answers"):
        advantages(torch.tensor([[1.0], [0.0]]), Objective())


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_an_answer_without_tokens_is_refused(normalization):
    with pytest.raises(ValueError, match="no tokens"):
        token_weights(torch.tensor([[3, 0]]), Objective(normalization=normalization), 5)


def test_an_answer_longer_than_possible_is_refused():
    with pytest.raises(ValueError, match="6 tokens, more than max_new_tokens=5"):
        token_weights(torch.tensor([[3, 6]]), Objective(normalization="constant"), 5)


def test_missing_inputs_are_refused():
    zeros = torch.zeros(1, 2)
    inputs = LossInputs(zeros, sampler_logprobs=zeros, advantages=zeros, weights=zeros, mask=zeros)
    with pytest.raises(ValueError, match="needs reference_logprobs"):
        policy_loss(inputs, Objective())
    with pytest.raises(ValueError, match="needs sequence_log_ratio"):
        policy_loss(replace(inputs, reference_logprobs=zeros), Objective(ratio="sequence"))
    # Neither is needed without its term.
    policy_loss(inputs, Objective(kl_coefficient=0.0))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilon_low": 1.0}, "epsilon_low=1.0"),
        ({"epsilon_low": -0.1}, "epsilon_low=-0.1"),
        ({"epsilon_low": math.nan}, "epsilon_low=nan"),
        ({"epsilon_high": -0.1}, "epsilon_high=-0.1"),
        ({"epsilon_high": math.nan}, "epsilon_high=nan"),
        ({"tis_cap": 0.0}, "tis_cap=0.0"),
        ({"tis_cap": math.nan}, "tis_cap=nan"),
        ({"kl_coefficient": -0.1}, "kl_coefficient=-0.1"),
        ({"kl_coefficient": math.nan}, "kl_coefficient=nan"),
        ({"kl_coefficient": math.inf}, "kl_coefficient=inf"),
        ({"advantage_epsilon": -1e-9}, "advantage_epsilon=-1e-09"),
        ({"advantage_epsilon": math.nan}, "advantage_epsilon=nan"),
        ({"kl_estimator": "k4"}, "kl_estimator='k4'"),
        ({"ratio": "tokens"}, "did you mean 'token'"),
        ({"normalization": "group_token"}, "did you mean 'group_tokens'"),
        ({"advantage": "group"}, "advantage='group'"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(change, named):
    with pytest.raises(ConfigError, match=named):
        Objective(**change)
