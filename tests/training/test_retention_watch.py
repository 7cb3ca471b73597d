"""The retention watch: rise and gain against the first step, a run that forgets too much ends on all ranks."""

from __future__ import annotations

import json

import pytest
import warm
import yaml

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.worker_task import run_task, write_task
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training import text_run
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.retention_watch import RetentionWatch
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import Trainer

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)


@pytest.fixture
def stage(tmp_path):
    mixture = tmp_path / "math.yaml"
    mixture.write_text(yaml.safe_dump({"name": "math", "weights": {"math": 1}}))

    def make(lr: float, **changes) -> Train:
        fields = {
            "architecture": TINY,
            "mixture": str(mixture),
            "steps": 6,
            "batch": BatchConfig(32, 2, 4),
            "schedule": Schedule(lr=lr, style="constant"),
            "validation_batches": 2,
            "checkpoint_every": 1,
        }
        return Train(**(fields | changes))

    return make


def lines(folder, key):
    return [
        each for each in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if key in each
    ]


def made(folder):
    folder.mkdir()
    return folder


def test_rise_and_gain_are_differences_to_the_first_step(stage, inputs, tmp_path):
    watch = RetentionWatch(every=2, sources=["web", "chat"], batches=2)
    out = made(tmp_path / "run")
    metrics = stage(1e-2, watch=watch, validate_every=6).run(inputs, out)
    first = json.loads((out / "retention.json").read_text())
    found = lines(out, "retention")
    assert [line["step"] for line in found] == [2, 4, 6]
    last = found[-1]["retention"]
    assert metrics["retention"] == last
    assert "stopped" not in metrics
    assert last["gain"]["math"] == pytest.approx(first["learned"]["math"] - metrics["validation"]["math"])
    assert last["gain"]["math"] > 0.1
    assert last["loss"]["mean"] == pytest.approx((last["loss"]["web"] + last["loss"]["chat"]) / 2)
    assert set(first["kept"]) == {"web", "chat"}


def test_a_run_that_forgets_ends_and_a_resumed_one_ends_at_the_same_step(
    stage, inputs, tmp_path, monkeypatch
):
    # A learning rate that breaks the model: every loss rises.
    watch = RetentionWatch(every=2, sources=["web"], batches=1, stop_if_loss_rises_by=1.0)
    whole, broken = made(tmp_path / "whole"), made(tmp_path / "broken")
    metrics = stage(1.0, watch=watch).run(inputs, whole)
    assert metrics["steps"] == 2
    assert "stopped after step 2: the loss of web rose by" in metrics["stopped"]
    assert (whole / "checkpoint").is_dir()
    honest = Trainer.step

    def fails_in_step_two(trainer, dataset, consumed, *rest):
        if consumed:
            raise OSError("killed")
        return honest(trainer, dataset, consumed, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", fails_in_step_two)
        with pytest.raises(OSError, match="killed"):
            stage(1.0, watch=watch).run(inputs, broken)
    resumed = stage(1.0, watch=watch).run(inputs, broken)
    assert resumed["stopped"] == metrics["stopped"]
    assert lines(broken, "retention") == lines(whole, "retention")


def test_a_run_that_forgot_and_was_killed_before_its_end_makes_no_further_step(
    stage, inputs, tmp_path, monkeypatch
):
    watch = RetentionWatch(every=2, sources=["web"], batches=1, stop_if_loss_rises_by=1.0)
    out = made(tmp_path / "run")

    def killed(*arguments):
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(text_run.TextRun, "finish", killed)
        with pytest.raises(OSError, match="killed"):
            stage(1.0, watch=watch).run(inputs, out)
    monkeypatch.setattr(Trainer, "step", killed)
    metrics = stage(1.0, watch=watch).run(inputs, out)
    assert metrics["steps"] == 2
    assert "stopped after step 2" in metrics["stopped"]


def test_two_ranks_stop_together(stage, inputs, tmp_path):
    watch = RetentionWatch(every=1, sources=["web"], batches=1, stop_if_loss_rises_by=1.0)
    out = made(tmp_path / "two")
    task = write_task(stage(1.0, watch=watch, parallel=ParallelConfig(data_parallel_size=2)), inputs, out)
    warm.ranks(run_task, task, world=2)
    metrics = json.loads(task.with_name("metrics.json").read_text())
    assert metrics["steps"] < 6
    assert "rose by" in metrics["stopped"]


def test_only_a_watch_that_may_end_the_run_is_part_of_its_identity(stage):
    plain = stage(1e-2).identity()
    assert stage(1e-2, watch=RetentionWatch(every=2, sources=["web"])).identity() == plain
    stopping = RetentionWatch(every=2, sources=["web"], stop_if_loss_rises_by=0.5)
    assert stage(1e-2, watch=stopping).identity() != plain


@pytest.mark.parametrize(
    "wrong",
    [{"every": 2}, {"sources": ["web"]}, {"stop_if_loss_rises_by": 1.0}, {"every": -1}, {"batches": 0}],
)
def test_refusals(wrong):
    with pytest.raises(ConfigError):
        RetentionWatch(**wrong)
