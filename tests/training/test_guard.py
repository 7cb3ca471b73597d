"""A step with a NaN changes nothing and is told with its samples; a run whose loss is NaN is never finished; spikes."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import replace

import guard_layouts
import pytest
import torch
from parallel_runs import results_of
from stage_runs import begin, records, run

from megatron_prism.errors import ConfigError, TrainingError
from megatron_prism.models.architecture import Architecture
from megatron_prism.training import bad_steps, guard, text_run
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.guard import FEWEST_LOSSES, Guard, GuardSettings, Verdict
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.text_data import TextData
from megatron_prism.training.trainer import Trainer

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)
SIZE = 4


def stage(**changes) -> Train:
    return Train(
        **{
            "architecture": TINY,
            "mixture": "shoebox-mcs",
            "steps": 8,
            "batch": BatchConfig(32, 2, SIZE),
            "schedule": Schedule(lr=1e-2, warmup_steps=1),
            "optimizer": OptimizerSettings(eps=1e-8),
            "validation_batches": 1,
            "checkpoint_every": 2,
        }
        | changes
    )


@contextmanager
def poisoned(monkeypatch, *steps: int, factor: float = math.nan):
    """Batches of these steps (from 1) have their loss multiplied by `factor`."""
    honest = TextData.batch

    def poisoned_batch(self, consumed_samples):
        batches = honest(self, consumed_samples)
        if consumed_samples // SIZE + 1 not in steps:
            return batches
        return [batch | {"loss_mask": batch["loss_mask"] * factor} for batch in batches]

    with monkeypatch.context() as patched:
        patched.setattr(TextData, "batch", poisoned_batch)
        yield patched


def events(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "skipped" in line or "spike" in line]


def test_a_batch_with_a_nan_is_skipped_and_named(inputs, tmp_path, monkeypatch, caplog):
    with poisoned(monkeypatch, 3):
        made = run(stage(), inputs, tmp_path)
    assert [line["step"] for line in records(made.path)] == [1, 2, 4, 5, 6, 7, 8]
    assert all(math.isfinite(line["loss"]) for line in records(made.path))
    assert made.metrics["skipped_steps"] == 1
    assert math.isfinite(made.metrics["loss"])
    (event,) = events(made.path)
    assert event["step"] == 3
    assert event["skipped"]["samples"] == [8, 11]
    assert sum(event["skipped"]["sources"].values()) == SIZE
    assert "step 3: loss nan or gradient norm nan is not finite, so its update is not applied" in caplog.text
    assert "samples 8 to 11 of " in caplog.text


def test_without_the_guard_every_later_loss_would_be_nan(inputs, tmp_path, monkeypatch):
    """Negative control, and what the stage does with weights that are NaN all the same: it is not finished."""
    with poisoned(monkeypatch, 3) as patched:
        patched.setattr(Guard, "accept", lambda self, loss, norm: True)
        with pytest.raises(TrainingError, match=r"the loss of .* is nan, so the run is not finished"):
            run(stage(), inputs, tmp_path)
    assert not list(tmp_path.glob("artifacts/train-*[0-9a-f]"))
    (partial,) = tmp_path.glob("artifacts/train-*.partial")
    assert [math.isnan(line["loss"]) for line in records(partial)][2:] == [True] * 6


def test_too_many_in_a_row_stop_the_run_at_the_checkpoint_before(inputs, tmp_path, monkeypatch):
    config = stage(checkpoint_every=2, guard=GuardSettings(max_skipped=2))
    with poisoned(monkeypatch, 4, 5, 6), pytest.raises(TrainingError) as stopped:
        run(config, inputs, tmp_path)
    message = str(stopped.value)
    assert "steps 4 to 6: loss nan" in message
    assert "the checkpoint of step 3, before the first of them, is kept in" in message
    (partial,) = tmp_path.glob("artifacts/train-*.partial")
    assert sorted(path.name for path in (partial / "resume").glob("step_*"))[-1] == "step_0000003"
    # Without the bad batches the same command goes on from there, as if nothing had happened.
    made = run(config, inputs, tmp_path)
    whole = run(config, inputs, tmp_path / "whole")
    assert records(made.path) == records(whole.path)


def test_bad_steps_that_are_not_in_a_row_do_not_stop_it(inputs, tmp_path, monkeypatch):
    with poisoned(monkeypatch, 2, 4, 6):
        made = run(stage(guard=GuardSettings(max_skipped=1)), inputs, tmp_path)
    assert made.metrics["skipped_steps"] == 3


@pytest.mark.parametrize("reaction", ["log", "skip", "rollback"])
def test_a_spike(reaction, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "FEWEST_LOSSES", 3)
    settings = GuardSettings(on_spike=reaction, spike_zscore=4.0, spike_window=32)
    with scaled(monkeypatch, 6):
        made = run(stage(guard=settings), inputs, tmp_path)
    steps = [line["step"] for line in records(made.path)]
    found = events(made.path)
    assert [event["step"] for event in found] == [6]
    if reaction == "log":
        assert steps == list(range(1, 9))
        assert "standard deviations above" in found[0]["spike"]["reason"]
        assert made.metrics["skipped_steps"] == 0
        return
    assert steps == [1, 2, 3, 4, 5, 7, 8]
    assert made.metrics["skipped_steps"] == 1
    if reaction == "rollback":
        assert json.loads((made.path / bad_steps.RULED_OUT).read_text()) == [5 * SIZE]
        assert found[0]["skipped"] == "ruled out by a rollback"
        # It went back to step 4, so step 5 was made twice, from the same state and on the same data.
        unbroken = run(
            stage(guard=GuardSettings(on_spike="skip", spike_zscore=4.0, spike_window=32)),
            inputs,
            tmp_path / "x",
        )
        assert records(made.path)[:5] == records(unbroken.path)[:5]


@contextmanager
def scaled(monkeypatch, spiking: int):
    """The loss of one step is ten times as large (the mask counts in the number of tokens, so it cannot show this)."""
    honest_batch, honest_run, position = TextData.batch, Trainer._run, [0]

    def batch(self, consumed_samples):
        position[0] = consumed_samples
        return honest_batch(self, consumed_samples)

    def run_batch(self, batches, forward_only):
        sums = honest_run(self, batches, forward_only)
        spikes = not forward_only and position[0] // SIZE + 1 == spiking
        return replace(sums, total=10 * sums.total) if spikes else sums

    with monkeypatch.context() as patched:
        patched.setattr(TextData, "batch", batch)
        patched.setattr(Trainer, "_run", run_batch)
        yield


def test_the_window_of_losses_survives_a_restart(inputs, tmp_path, monkeypatch):
    from stage_runs import run_until

    kept = []
    honest = text_run.BadSteps

    def watched(*arguments, **named):
        made = honest(*arguments, **named)
        kept.append(list(made.guard.losses))
        return made

    monkeypatch.setattr(text_run, "BadSteps", watched)
    left = begin(stage(), inputs, tmp_path)
    run_until(stage(), inputs, left.partial, 5)
    made = run(stage(), inputs, tmp_path)
    assert kept == [[], [line["loss"] for line in records(made.path)][:4]]


def test_zscores():
    with_deviation_one = [10.0, 12.0] * (FEWEST_LOSSES // 2)
    judge = Guard(GuardSettings(), {"losses": with_deviation_one})
    assert judge.zscore(13.0) == pytest.approx(2.0)
    assert judge.zscore(5.0) < 0
    assert Guard(GuardSettings(), {"losses": with_deviation_one[1:]}).zscore(1e9) == 0.0
    flat = Guard(GuardSettings(), {"losses": [2.0] * FEWEST_LOSSES})
    assert flat.zscore(2.0) == 0.0
    assert flat.zscore(2.02) == pytest.approx(10.0)
    assert Guard(GuardSettings(spike_window=40), {"losses": [1.0] * 99}).state()["losses"] == [1.0] * 40


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match=r"guard\.on_spike='ignore'"):
        GuardSettings(on_spike="ignore")
    with pytest.raises(ConfigError, match="max_skipped=-1"):
        GuardSettings(max_skipped=-1)
    with pytest.raises(ConfigError, match=r"spike_window=31: a spread needs at least 32"):
        GuardSettings(spike_window=31)
    with pytest.raises(ConfigError, match="no checkpoint to return to; set checkpoint_every"):
        stage(checkpoint_every=0, guard=GuardSettings(on_spike="rollback"))
    assert stage(guard=GuardSettings(max_skipped=9)).fingerprint({}) == stage().fingerprint({})


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return results_of(guard_layouts.main, tmp_path_factory.mktemp("guard"), guard_layouts.WORLDS)


@pytest.mark.parametrize("name", guard_layouts.CASES)
def test_all_ranks_refuse_what_one_rank_cannot_apply(layouts, name):
    """A NaN in the gradients of one data-parallel rank only, of one pipeline stage only, or in the loss."""
    found = layouts[name]
    assert found["verdicts"] == [
        [int(Verdict.NOT_FINITE)] * found["world"],
        [int(Verdict.FINE)] * found["world"],
    ]
    assert found["weights_moved"] == [False, True]
    assert found["moments_moved"] == [False, True]
    assert found["step_counts"] == [1, 2]
    assert found["finite"]


def test_ranks_that_decided_alone_would_differ(layouts):
    """Negative control: the verdict of each rank without the agreement, on a spike that only one of them sees."""
    assert layouts["disagreement"] == {"alone": [1, 0], "together": [1, 1]}


def test_the_order_of_checks_needs_a_norm(monkeypatch):
    """The gradient norm alone is enough for a verdict."""
    judge = Guard(GuardSettings())
    monkeypatch.setattr(guard, "_agree", lambda own: own)
    assert judge.accept(1.0, 1.0)
    assert not judge.accept(1.0, math.inf)
    assert (judge.streak, judge.skipped, list(judge.losses)) == (1, 1, [1.0])
    assert torch.isfinite(torch.tensor(judge.losses[0]))
