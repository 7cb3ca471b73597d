"""The log-probability gate: its measurements, when it trips, and its actions."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import torch.distributed as dist
import warm

from megatron_prism.errors import ConfigError, PrismError
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.rl.gate import GateReport, GateSettings, GateStop, conclude, observe

# Two rows; where the mask is 0, padding and prompts may hold any value.
MASK = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
TEXTS = torch.tensor([[5, 5, 5, 7], [9, 9, 9, 0]])
TRAINER = torch.tensor([[math.nan, -1.0, -2.0, -0.5], [-3.0, -0.25, math.inf, -99.0]])
OPEN = {"mean_ratio": 1e9, "worst_log_ratio": 1e9}


def with_gaps(*gaps: float) -> torch.Tensor:
    """A sampler that is this far from the trainer at the tokens that count, in order."""
    sampler = TRAINER.clone()
    sampler[MASK > 0] += torch.tensor(gaps)
    return sampler


def observed(sampler: torch.Tensor, trainer: torch.Tensor = TRAINER, **settings):
    return observe(trainer, sampler, MASK, TEXTS, settings=GateSettings(**settings))


def test_what_is_measured_by_hand():
    gaps = (0.1, -0.2, 0.0, 0.4, 0.0)
    observation = observed(with_gaps(*gaps), **OPEN)
    ratios = sum(math.exp(abs(gap)) for gap in gaps)
    assert observation.sums.tolist() == pytest.approx([5, 0.7, ratios, 0, 0], rel=1e-6)
    assert observation.largest_gap.tolist() == pytest.approx([0.4, 9, -3.0, -2.6], rel=1e-6)
    assert torch.equal(observation.mask, MASK)
    with session():
        report = conclude([observation, observation], GateSettings(**OPEN), 1)
    assert report == GateReport(
        mean_abs=pytest.approx(0.14),
        max_abs=pytest.approx(0.4),
        mean_ratio=pytest.approx(ratios / 5),
        masked=0,
        tripped=False,
    )
    assert report.record() == {
        "mean_abs": report.mean_abs,
        "max_abs": report.max_abs,
        "mean_ratio": report.mean_ratio,
        "masked": 0,
    }


def test_agreement_is_silent(caplog):
    with session(), caplog.at_level(logging.WARNING):
        report = conclude([observed(with_gaps(0, 0, 0, 0, 0))], GateSettings(action="stop"), 1)
    assert (report.mean_ratio, report.max_abs, report.tripped) == (1.0, 0.0, False)
    assert not caplog.records


@pytest.mark.parametrize(
    ("gaps", "settings", "trips"),
    [
        ((0.3, 0, 0, 0, 0), {"mean_ratio": 1.08, "worst_log_ratio": 0.4}, False),
        ((0.3, 0, 0, 0, 0), {"mean_ratio": 1.06, "worst_log_ratio": 0.4}, True),
        ((0.3, 0, 0, 0, 0), {"mean_ratio": 1.08, "worst_log_ratio": 0.2}, True),
        # Gaps of both signs count the same and do not cancel.
        ((0.3, -0.3, 0.3, -0.3, 0), {"mean_ratio": 1.2, "worst_log_ratio": 0.4}, True),
        ((-0.3, 0, 0, 0, 0), {"mean_ratio": 1.08, "worst_log_ratio": 0.2}, True),
    ],
)
def test_either_bound_trips_the_gate(gaps, settings, trips):
    with session():
        assert (
            conclude([observed(with_gaps(*gaps), **settings)], GateSettings(**settings), 1).tripped == trips
        )
        if trips:
            with pytest.raises(GateStop):
                conclude([observed(with_gaps(*gaps), **settings)], GateSettings(action="stop", **settings), 1)


@pytest.mark.parametrize(
    ("side", "bad"),
    [("sampler", math.nan), ("sampler", -math.inf), ("trainer", -math.inf), ("trainer", math.nan)],
)
@pytest.mark.parametrize("action", ["warn", "mask", "stop"])
def test_what_is_not_finite_trips_the_gate_and_is_left_out(side, bad, action):
    """A NaN in the loss would reach all weights, even if the action is only to warn."""
    both = {"trainer": TRAINER.clone(), "sampler": TRAINER.clone()}
    both[side][0, 3] = bad
    observation = observed(both["sampler"], both["trainer"], action=action)
    assert observation.largest_gap.tolist()[:2] == [math.inf, 7]
    assert observation.mask.tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    with session():
        if side == "trainer" and math.isnan(bad):
            with pytest.raises(GateStop, match=r"step 4: the trainer's .* of 1 of 5 tokens are NaN"):
                conclude([observation], GateSettings(action=action), 4)
        elif action == "stop":
            with pytest.raises(GateStop, match="in answer 7 "):
                conclude([observation], GateSettings(action=action), 4)
        else:
            report = conclude([observation], GateSettings(action=action), 4)
            assert (report.tripped, report.masked) == (True, 1)


def test_infinite_bounds_still_leave_out_what_is_not_finite():
    sampler = TRAINER.clone()
    sampler[0, 1] = math.nan
    settings = {"mean_ratio": math.inf, "worst_log_ratio": math.inf}
    assert observed(sampler, **settings).mask.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_both_without_probability_is_no_agreement():
    trainer = TRAINER.clone()
    trainer[0, 1] = -math.inf
    assert observed(trainer.clone(), trainer).largest_gap[0] == math.inf


def test_mask_leaves_out_the_tokens_past_the_bound_and_no_others(caplog):
    settings = GateSettings(action="mask", worst_log_ratio=0.25)
    sampler = with_gaps(0.3, 0.2, 0.0, -0.26, 0.0)
    observation = observe(TRAINER, sampler, MASK, TEXTS, settings=settings)
    assert observation.mask.tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert observation.sums[3] == 2
    with session(), caplog.at_level(logging.WARNING):
        report = conclude([observation], settings, 8)
    assert (report.masked, report.tripped) == (2, True)
    # They still count in the measurements: 5 tokens, not 3.
    assert report.mean_abs == pytest.approx(0.76 / 5)
    assert "2 tokens left out" in caplog.text


def test_warn_names_the_step_the_bounds_and_the_worst_answer(caplog):
    worse, better = with_gaps(0, 0, 2.5, 0, 0), with_gaps(2.25, 0, 0, 0, 0)
    with session(), caplog.at_level(logging.WARNING):
        report = conclude([observed(better), observed(worse), observed(better)], GateSettings(), 12)
    assert report.tripped
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("step 12: trainer and sampler disagree: mean ratio ")
    for part in ("gate.mean_ratio=1.05", "worst |log ratio| 2.5", "gate.worst_log_ratio=2.0", "answer 7 of"):
        assert part in line
    assert line.endswith("the trainer has -0.5000 and the sampler 2.0000")


def test_stop_is_the_users_error_and_says_what_to_look_for():
    with (
        session(),
        pytest.raises(GateStop, match=r"step 3: .* answer 9 .*; look for stale weights") as caught,
    ):
        conclude([observed(with_gaps(0, 0, 0, 3.0, 0))], GateSettings(action="stop"), 3)
    assert isinstance(caught.value, PrismError)


def test_without_tokens_nothing_trips():
    nothing = observe(TRAINER, TRAINER, torch.zeros_like(MASK), TEXTS, settings=GateSettings())
    with session():
        for observations in ([nothing], []):
            report = conclude(observations, GateSettings(action="stop"), 1)
            assert (report.mean_abs, report.max_abs, report.tripped) == (0.0, 0.0, False)


def _rank(folder: str) -> None:
    rank = dist.get_rank()
    gaps = (0.1, 0, 0, 0, 0) if rank == 0 else (0, 0, 2.5, 0, 0)
    with session(ParallelConfig(data_parallel_size=2)):
        report = conclude([observed(with_gaps(*gaps))], GateSettings(), 1)
        try:
            conclude([observed(with_gaps(*gaps))], GateSettings(action="stop"), 1)
        except GateStop as stop:
            torch.save((report, str(stop)), f"{folder}/{rank}")


def test_ranks_agree_on_the_sums_and_on_the_worst_answer(tmp_path):
    """All ranks must stop, or the others would wait forever; the largest gap is on another rank."""
    warm.ranks(_rank, str(tmp_path), world=2)
    (first, message), (second, other_message) = (
        torch.load(tmp_path / str(r), weights_only=False) for r in (0, 1)
    )
    assert first == second
    assert message == other_message
    assert "answer 7 of" in message
    assert first.max_abs == 2.5
    assert first.mean_abs == pytest.approx(2.6 / 10)
    assert first.mean_ratio == pytest.approx((8 + math.exp(0.1) + math.exp(2.5)) / 10)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"action": "mark"}, "did you mean 'mask'"),
        ({"mean_ratio": 0.99}, "mean_ratio=0.99"),
        ({"mean_ratio": math.nan}, "mean_ratio=nan"),
        ({"worst_log_ratio": 0.0}, "worst_log_ratio=0.0"),
        ({"worst_log_ratio": math.nan}, "worst_log_ratio=nan"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        GateSettings(**settings)
