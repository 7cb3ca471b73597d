"""Rewards from verdicts: the gate, the penalties, and settings that are refused."""

from __future__ import annotations

import math

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.rl.rewards import RewardSettings, repeated_share, reward

FORMATTED, BARE = "<think>2 + 2</think>\n\\boxed{4}", "\\boxed{4}"
TOKENS = list(range(30))


def value(right: bool, text: str = FORMATTED, tokens=TOKENS, finish="stop", **settings) -> float:
    return reward(right, text, tokens, finish_reason=finish, settings=RewardSettings(**settings)).value


def test_right_and_wrong_answers():
    right, wrong = (
        reward(each, FORMATTED, TOKENS, finish_reason="stop", settings=RewardSettings())
        for each in (True, False)
    )
    assert (right.value, right.correct, right.format_ok, right.parts) == (1.0, True, True, {"answer": 1.0})
    assert (wrong.value, wrong.correct, wrong.format_ok, wrong.parts) == (0.0, False, True, {"answer": 0.0})
    assert value(True, correct=10.0, wrong=-2.0, unfinished=None) == 10.0
    assert value(False, correct=10.0, wrong=-2.0, unfinished=None) == -2.0


@pytest.mark.parametrize(
    "text",
    [
        BARE,
        "<think>2 + 2 \\boxed{4}",
        "<think>2 + 2</think>",
        "2 + 2</think> \\boxed{4}",
        "So: <think>2 + 2</think> \\boxed{4}",
        "",
    ],
)
def test_a_right_answer_in_the_wrong_format_gets_nothing_and_is_not_correct(text):
    found = reward(True, text, TOKENS, finish_reason="stop", settings=RewardSettings(wrong=0.0, correct=10.0))
    assert (found.value, found.correct, found.format_ok) == (0.0, False, False)


def test_without_the_gate_the_format_is_told_and_does_not_matter():
    found = reward(True, BARE, TOKENS, finish_reason="stop", settings=RewardSettings(format_gate=False))
    assert (found.value, found.correct, found.format_ok) == (1.0, True, False)
    assert value(False, BARE, format_gate=False, wrong=0.25) == 0.25


@pytest.mark.parametrize(("wrong", "wanted"), [(-1.0, -1.0), (0.0, 0.0), (0.5, 0.0)])
def test_breaking_the_format_never_pays(wrong, wanted):
    """0 as in the paper; but if a wrong answer gives less than 0, breaking the format must not give more."""
    settings = {"wrong": wrong, "unfinished": min(wrong, 0.0)}
    assert value(True, BARE, **settings) == value(False, BARE, **settings) == wanted
    assert wanted <= value(False, FORMATTED, **settings)


def test_an_answer_that_ran_out_of_tokens_gets_its_own_reward_whatever_it_says():
    for right, text in ((True, FORMATTED), (False, FORMATTED), (True, BARE)):
        assert value(right, text, finish="length") == 0.0
        assert value(right, text, finish="length", unfinished=-0.5) == -0.5
    # The verdict does not depend on the reward: pass rates count the answer as correct.
    assert reward(True, FORMATTED, TOKENS, finish_reason="length", settings=RewardSettings()).correct
    assert value(True, finish="length", unfinished=None) == 1.0
    assert value(True, BARE, finish="length", unfinished=None) == 0.0


def test_repeated_share_by_hand():
    assert repeated_share([1, 2, 3, 4], 2) == 0.0
    # Bigrams 12 21 12 21 12: two different ones of five.
    assert repeated_share([1, 2, 1, 2, 1, 2], 2) == pytest.approx(3 / 5)
    assert repeated_share([7] * 11, 1) == pytest.approx(10 / 11)
    # Too short for a single n-gram.
    assert repeated_share([1, 1, 1], 4) == repeated_share([], 1) == 0.0
    assert repeated_share([1, 1, 1], 3) == 0.0


def test_repetition_past_the_threshold_is_taken_off_in_proportion():
    loop = [1, 2] * 3  # share 3/5 of its bigrams
    settings = {"repetition_ngram": 2, "repetition_penalty": 0.5}
    found = reward(True, FORMATTED, loop, finish_reason="stop", settings=RewardSettings(**settings))
    assert found.value == pytest.approx(1 - 0.5 * 3 / 5)
    assert found.parts == {"answer": 1.0, "repetition": pytest.approx(-0.3)}
    assert sum(found.parts.values()) == found.value
    # Up to the threshold there is no penalty, and by default there is none at all.
    assert value(True, tokens=loop, repetition_threshold=0.6, **settings) == 1.0
    assert value(True, tokens=loop, repetition_threshold=0.59, **settings) < 1.0
    assert value(True, tokens=[1] * 500) == 1.0
    # The penalty also applies to wrong and to unfinished answers, whose rewards go below zero.
    assert (
        value(False, tokens=loop, **settings)
        == value(False, tokens=loop, finish="length", **settings)
        == -0.3
    )


def test_overlong_answers_lose_linearly_over_the_buffer():
    """DAPO's equation 13 with L_max = 100 and L_cache = 20."""
    losses = {0: 0, 79: 0, 80: 0, 81: 1 / 20, 90: 1 / 2, 99: 19 / 20, 100: 1, 101: 1, 5000: 1}
    for length, loss in losses.items():
        tokens = list(range(length))
        assert value(True, tokens=tokens, overlong_tokens=100, overlong_buffer=20) == pytest.approx(1 - loss)
    assert value(True, tokens=list(range(5000))) == 1.0
    found = reward(
        False,
        FORMATTED,
        [0] * 90,
        finish_reason="stop",
        settings=RewardSettings(overlong_tokens=100, overlong_buffer=100),
    )
    assert found.parts == {"answer": 0.0, "overlong": -0.9}


def test_all_parts_add_up():
    settings = RewardSettings(
        repetition_ngram=1, repetition_penalty=0.5, overlong_tokens=10, overlong_buffer=10, unfinished=-1.0
    )
    found = reward(True, FORMATTED, [3, 3, 3, 3], finish_reason="length", settings=settings)
    assert found.parts == {"answer": -1.0, "repetition": -0.375, "overlong": -0.4}
    assert found.value == pytest.approx(-1.775)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"correct": 0.0}, "correct=0.0"),
        ({"correct": math.nan}, "correct=nan"),
        ({"correct": math.inf}, "correct=inf"),
        ({"wrong": math.nan}, "wrong=nan"),
        ({"wrong": -1.0}, "unfinished=0.0: .* at most wrong=-1.0"),
        ({"unfinished": math.nan}, "unfinished=nan"),
        ({"unfinished": -math.inf}, "unfinished=-inf"),
        ({"unfinished": 0.1}, "unfinished=0.1"),
        ({"repetition_ngram": 0}, "repetition_ngram=0"),
        ({"repetition_threshold": 1.0}, "repetition_threshold=1.0"),
        ({"repetition_threshold": math.nan}, "repetition_threshold=nan"),
        ({"repetition_penalty": -0.1}, "repetition_penalty=-0.1"),
        ({"repetition_penalty": math.nan}, "repetition_penalty=nan"),
        ({"overlong_tokens": 10}, "overlong_buffer=0"),
        ({"overlong_buffer": 10}, "overlong_tokens=0"),
        ({"overlong_tokens": 10, "overlong_buffer": 11}, "overlong_buffer=11"),
        ({"overlong_tokens": 10, "overlong_buffer": -1}, "overlong_buffer=-1"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        RewardSettings(**settings)
