"""A run goes on under another layout: tensor-parallel, then data-parallel, then one process, with the same losses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import warm
from parallel_runs import layout
from stage_runs import begin, records, run, run_until

from megatron_prism.models.architecture import Architecture
from megatron_prism.training import adam_state
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)
ONE = Train(
    TINY, "shoebox-mcs", steps=6, batch=BatchConfig(32, 2, 4), schedule=Schedule(lr=1e-2, warmup_steps=1),
    optimizer=OptimizerSettings(eps=1e-8), validation_batches=1, checkpoint_every=2,
)  # fmt: skip
TENSOR = replace(ONE, parallel=layout(tp=2, sp=True))
DATA = replace(ONE, parallel=layout(dp=2), batch=BatchConfig(32, 1, 4), recompute="full")


def gap(folder: Path, reference: Path) -> float:
    pairs = zip(records(folder), records(reference), strict=True)
    return max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in pairs)


@pytest.fixture(scope="module")
def reference(inputs, tmp_path_factory):
    return run(ONE, inputs, tmp_path_factory.mktemp("reference"))


def test_tensor_then_data_parallel_then_one_process(inputs, reference, tmp_path, monkeypatch):
    first = begin(TENSOR, inputs, tmp_path)
    warm.ranks(run_until, TENSOR, inputs, first.partial, 3, world=2)
    second = begin(DATA, inputs, tmp_path)
    assert second.partial == first.partial, "the layout is not identity"
    warm.ranks(run_until, DATA, inputs, second.partial, 5, world=2)
    assert [line["step"] for line in records(second.partial)] == [1, 2, 3, 4, 5]
    shutil.copytree(tmp_path / "artifacts", tmp_path / "control" / "artifacts")

    made = run(ONE, inputs, tmp_path)
    assert gap(made.path, reference.path) <= 1e-5
    layouts = [attempt["tuning"] for attempt in made.receipt.attempts]
    assert [each["parallel.tensor_model_parallel_size"] for each in layouts] == [2, 1, 1]
    assert [each["batch.micro_batch_size"] for each in layouts] == [2, 1, 2]
    assert [attempt["world_size"] for attempt in made.receipt.attempts] == [2, 2, 1]

    # Negative control: the weights are resharded, and the optimizer begins anew.
    with monkeypatch.context() as patched:
        forget_moments(patched)
        control = run(ONE, inputs, tmp_path / "control")
    assert gap(control.path, reference.path) > 1e-4


def forget_moments(patched: pytest.MonkeyPatch) -> None:
    honest = adam_state.load_state

    def forget_and_load(optimizer, loaded):
        forget(loaded)
        honest(optimizer, loaded)

    patched.setattr(adam_state, "load_state", forget_and_load)


def forget(state) -> None:
    if isinstance(state, list):
        for part in state:
            forget(part)
    if isinstance(state, dict):
        for key, value in state.items():
            if key in ("exp_avg", "exp_avg_sq"):
                value.zero_()
            else:
                forget(value)
