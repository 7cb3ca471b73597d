"""A run that is given more steps goes on where it ended, bit for bit as if it had had them from the beginning."""

from __future__ import annotations

import pytest
import torch
from stage_runs import begin, records, run, run_until, weights

from megatron_prism.models.architecture import Architecture
from megatron_prism.training import text_data
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.checkpoint_settings import CheckpointSettings
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)


def stage(steps: int, length: int | None = 12, **changes) -> Train:
    return Train(
        **{
            "architecture": TINY,
            "mixture": "shoebox-mcs",
            "steps": steps,
            "batch": BatchConfig(32, 2, 4),
            "schedule": Schedule(lr=1e-2, warmup_steps=1, steps=length),
            "optimizer": OptimizerSettings(eps=1e-8),
            "validation_batches": 1,
            "checkpoints": CheckpointSettings(keep_optimizer=True),
        }
        | changes
    )


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """12 steps at once: the folder and its weights."""
    folder = tmp_path_factory.mktemp("whole")
    made = run(stage(12), inputs, folder)
    return made, weights(made.path)


def assert_same(made, whole):
    assert records(made.path) == records(whole[0].path)
    found = weights(made.path)
    assert all(torch.equal(found[name], tensor) for name, tensor in whole[1].items())


def test_six_steps_and_then_twelve_are_twelve_steps(inputs, whole, tmp_path, caplog, monkeypatch):
    rounds = []
    build = text_data.training_dataset
    monkeypatch.setattr(
        text_data,
        "training_dataset",
        lambda folder, split, *a, **k: (
            rounds.append((split, k["round_samples"])) or build(folder, split, *a, **k)
        ),
    )
    short = run(stage(6), inputs, tmp_path)
    # The corpus of this test is not read twice; tests/data/test_rounds.py shows what depends on this number then.
    assert ("train", 12 * 4) in rounds
    assert "schedule.steps=12 is longer than the run of 6 steps" in caplog.text
    longer = run(stage(12), inputs, tmp_path)
    assert longer.receipt.continues == short.fingerprint
    assert_same(longer, whole)
    assert longer.metrics["steps"] == 12
    assert short.path.exists()


def test_a_run_that_was_broken_off_is_prolonged_too(inputs, whole, tmp_path):
    left = begin(stage(6, checkpoint_every=2), inputs, tmp_path)
    run_until(stage(6, checkpoint_every=2), inputs, left.partial, 5)
    longer = run(stage(12), inputs, tmp_path)
    assert not left.partial.exists()
    assert_same(longer, whole)
    assert [len(longer.receipt.attempts), longer.receipt.continues] == [2, left.fingerprint]


def test_a_finished_run_goes_on_past_the_end_of_its_schedule(inputs, whole, tmp_path):
    """Its schedule had no length of its own, so the longer run names that of the shorter one."""
    short = run(stage(4, length=None), inputs, tmp_path)
    longer = run(stage(6, length=4), inputs, tmp_path)
    assert longer.receipt.continues == short.fingerprint
    assert [line["lr"] for line in records(longer.path)][4:] == pytest.approx([1e-3] * 2)
    at_once = run(stage(6, length=4), inputs, tmp_path / "other")
    assert records(longer.path) == records(at_once.path)


def test_without_a_named_length_another_number_of_steps_is_another_run(inputs, tmp_path):
    """Every learning rate differs, so nothing can be continued."""
    run(stage(2, length=None), inputs, tmp_path)
    longer = run(stage(3, length=None), inputs, tmp_path)
    assert longer.receipt.continues == ""
    assert stage(2, length=None).fingerprint({}) == stage(2, length=2).fingerprint({})


def test_a_finished_run_without_its_optimizer_says_what_would_have_kept_it(inputs, tmp_path):
    lean = run(stage(2, checkpoints=CheckpointSettings()), inputs, tmp_path).path
    whole = run(stage(2), inputs, tmp_path / "whole").path
    assert "checkpoints.keep_optimizer=true" in stage(3).why_not_continued(lean)
    assert stage(3).why_not_continued(whole) == ""
    assert stage(2).why_not_continued(lean) == "", "its steps are not fewer"
