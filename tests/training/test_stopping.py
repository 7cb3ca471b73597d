"""A training run that is asked to stop saves and ends on all ranks at the same step, and goes on as if it had not."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import warm
from parallel_runs import layout
from stage_runs import begin, records, run

from megatron_prism.errors import ConfigError, Requeue
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.stop_file import ask_to_stop
from megatron_prism.platform import stop_signals
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import Trainer

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)
ONE = Train(
    TINY, "shoebox-mcs", steps=5, batch=BatchConfig(32, 2, 4), schedule=Schedule(lr=1e-2, warmup_steps=1),
    optimizer=OptimizerSettings(eps=1e-8), validation_batches=1,
)  # fmt: skip
TWO = replace(ONE, parallel=layout(dp=2))


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    return run(ONE, inputs, tmp_path_factory.mktemp("whole"))


def in_step(monkeypatch, number: int, act) -> None:
    """Call `act` in the middle of step `number`."""
    honest = Trainer.apply_gradients
    count = [0]

    def apply(self, *arguments):
        count[0] += 1
        if count[0] == number:
            act()
        return honest(self, *arguments)

    monkeypatch.setattr(Trainer, "apply_gradients", apply)


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in records(folder)]


@pytest.mark.parametrize("way", ["SIGTERM", "SIGUSR1", "request"])
def test_it_finishes_the_step_saves_and_goes_on(way, inputs, whole, tmp_path, monkeypatch):
    left = begin(ONE, inputs, tmp_path)

    def ask() -> None:
        ask_to_stop(left.partial) if way == "request" else os.kill(os.getpid(), getattr(signal, way))

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        in_step(patched, 2, ask)
        with pytest.raises(Requeue, match=r"stopped after step 2 of 5, because .*; the same command goes on"):
            ONE.run(inputs, left.partial)
    assert steps(left.partial) == [1, 2]
    assert signal.getsignal(signal.SIGTERM) is handler, "the process handles signals as before"
    assert stop_signals.received() == ""
    made = run(ONE, inputs, tmp_path)
    assert records(made.path) == records(whole.path)


def test_its_time_is_up(inputs, tmp_path, monkeypatch):
    short = replace(ONE, stop_after_minutes=10.0)
    left = begin(short, inputs, tmp_path)
    clock = time.monotonic
    in_step(monkeypatch, 3, lambda: monkeypatch.setattr(time, "monotonic", lambda: clock() + 601))
    with pytest.raises(
        Requeue, match=r"stopped after step 3 of 5, because its time is up \(stop_after_minutes\)"
    ):
        short.run(inputs, left.partial)
    with pytest.raises(ConfigError, match="stop_after_minutes=-1"):
        replace(ONE, stop_after_minutes=-1.0)
    assert short.fingerprint({}) == ONE.fingerprint({})


def signalled(inputs, out: Path, rank_with_signal: int) -> None:
    """A rank of two: one of them gets a signal in its second step."""
    rank = int(os.environ["RANK"])
    patched = pytest.MonkeyPatch()
    if rank == rank_with_signal:
        in_step(patched, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with stop_signals.handled(worker=True):
        try:
            TWO.run(inputs, out)
        except Requeue as stopped:
            (out.parent / f"rank{rank}").write_text(str(stopped))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all(rank, inputs, whole, tmp_path):
    left = begin(TWO, inputs, tmp_path)
    warm.ranks(signalled, inputs, left.partial, rank, world=2)
    said = {(left.partial.parent / f"rank{each}").read_text() for each in range(2)}
    assert len(said) == 1
    assert "stopped after step 2 of 5, because a signal asked it to stop" in said.pop()
    made = run(ONE, inputs, tmp_path)
    assert [len(made.receipt.attempts), steps(made.path)] == [2, [1, 2, 3, 4, 5]]
    for one, other in zip(records(made.path), records(whole.path), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
