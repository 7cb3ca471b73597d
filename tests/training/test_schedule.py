from __future__ import annotations

import math

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.training.schedule import Schedule


@pytest.mark.parametrize("style", ["cosine", "linear", "exponential"])
def test_warms_up_to_the_peak_and_ends_at_the_final_factor(style):
    schedule = Schedule(lr=2.0, style=style, warmup_steps=10, final_factor=0.1)
    assert schedule.at(0, 110) == pytest.approx(0.2)
    assert schedule.at(10, 110) == pytest.approx(2.0)
    assert schedule.at(110, 110) == pytest.approx(0.2)
    rates = [schedule.at(step, 110) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def test_exponential_is_dolomites_formula():
    schedule = Schedule(lr=5e-5, style="exponential", warmup_steps=100, final_factor=0.0)
    x = (400 - 100) / 900
    assert schedule.at(400, 1000) == pytest.approx(5e-5 * (math.exp(1 - x) - 1) / (math.e - 1))


def test_unknown_style_suggests():
    with pytest.raises(ConfigError, match="cosine"):
        Schedule(style="cosin")
    with pytest.raises(ConfigError, match="steps=0"):
        Schedule(steps=0)


def test_a_named_length_holds_for_every_length_of_the_run():
    named, own = Schedule(lr=1.0, warmup_steps=2, steps=20), Schedule(lr=1.0, warmup_steps=2)
    assert [named.at(step, 7) for step in range(20)] == [own.at(step, 20) for step in range(20)]
    assert named.at(30, 40) == named.at(20, 20) == pytest.approx(0.1)


def test_a_schedule_that_does_not_end_with_the_run_is_told_in_one_line():
    assert Schedule().mismatch(10) == Schedule(steps=10).mismatch(10) == ""
    assert Schedule(style="constant", steps=99).mismatch(10) == ""
    longer = Schedule(lr=1.0, steps=20).mismatch(10)
    assert longer.startswith("schedule.steps=20 is longer than the run of 10 steps, ")
    assert "ends at 6.20e-01 and not at 1.00e-01" in longer
    shorter = Schedule(lr=1.0, steps=4).mismatch(10)
    assert shorter.startswith("schedule.steps=4 ends before the run of 10 steps, ")
    assert "stays at 1.00e-01 in the last 6 steps" in shorter
    assert "warmup_steps=10: the run ends after 10 steps" in Schedule(warmup_steps=10).mismatch(10)
