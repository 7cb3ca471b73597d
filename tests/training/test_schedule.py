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
