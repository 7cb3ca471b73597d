"""What a run logs: losses of sources, norms of components, parts of a step, traces; trackers get the same numbers."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import measured_layouts
import pytest
from parallel_runs import results_of

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.log_settings import LogSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.trackers import open_trackers

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return results_of(measured_layouts.main, tmp_path_factory.mktemp("measured"), measured_layouts.LAYOUTS)


def test_tokens_and_losses_of_sources_add_up(measured):
    one = measured["one"]
    tokens = [count for _, count in one["sources"]]
    assert tokens == [4 * 32, 1 * 32, 3 * 16]
    assert sum(total for total, _ in one["sources"]) / sum(tokens) == pytest.approx(one["loss"], rel=1e-6)
    means = [total / count for total, count in one["sources"]]
    assert max(means) - min(means) > 1e-3, "a mean over all would not show the sources"


@pytest.mark.parametrize("layout", measured_layouts.LAYOUTS[2])
def test_every_layout_measures_the_same(measured, layout):
    found, one = measured[layout], measured["one"]
    for (total, count), (expected, tokens) in zip(found["sources"], one["sources"], strict=True):
        assert count == tokens
        assert total == pytest.approx(expected, rel=1e-5)
    assert found["norms"] == pytest.approx(one["norms"], rel=1e-4)


@pytest.mark.parametrize("layout", ["one", *measured_layouts.LAYOUTS[2]])
def test_the_norms_of_components_are_parts_of_the_whole(measured, layout):
    found = measured[layout]
    assert set(found["norms"]) == {"attention", "mlp", "mamba", "embedding", "head", "norm"}
    whole = math.sqrt(sum(norm**2 for norm in found["norms"].values()))
    assert whole == pytest.approx(found["grad_norm"], rel=1e-5)


def stage(**changes):
    return Train(
        architecture=TINY,
        mixture="shoebox-mcs",
        steps=3,
        batch=BatchConfig(32, 2, 8),
        schedule=Schedule(lr=1e-2),
        validation_batches=1,
        checkpoint_every=1,
        **changes,
    )


def test_a_run_logs_all_of_it(inputs, tmp_path, monkeypatch):
    sent: dict[int, dict] = {}
    run = SimpleNamespace(
        log=lambda values, step: sent.setdefault(step, {}).update(values), finish=lambda: None
    )
    begun = []
    fake = SimpleNamespace(
        init=lambda **arguments: begun.append(arguments) or run, __spec__=SimpleNamespace()
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = LogSettings(wandb="prism", component_norms_every=2, profile_steps=[2])
    out = tmp_path / "train-abc.partial"
    out.mkdir()
    stage(logging=settings).run(inputs, out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    for line in steps:
        assert sum(line["source_tokens"].values()) == 8 * 32
        mean = sum(line["source_loss"][name] * line["source_tokens"][name] for name in line["source_loss"])
        assert mean / (8 * 32) == pytest.approx(line["loss"], rel=1e-5)
        assert {"data", "forward_backward", "optimizer"} <= set(line["seconds"])
        assert line["memory_gib"]["peak"] > 0
    assert ["component_norms" in line for line in steps] == [False, True, False]
    assert ["checkpoint" in line["seconds"] for line in steps] == [False, True, True]
    trace = json.loads((out / "profile" / "step_2.json").read_text())
    assert any(
        "addmm" in event.get("name", "") or "mm" in event.get("name", "") for event in trace["traceEvents"]
    )
    assert [path.name for path in (out / "profile").iterdir()] == ["step_2.json"]
    # The tracker gets the same numbers, and the run's name stays the same when it is resumed.
    assert begun == [
        {"project": "prism", "name": "train-abc", "id": "train-abc", "resume": "allow", "dir": str(out)}
    ]
    assert sent[2]["train/loss"] == steps[1]["loss"]
    assert sent[2]["train/component_norms/mlp"] == steps[1]["component_norms"]["mlp"]
    assert sent[3]["validation/math"] == lines[-1]["validation"]["math"]


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="counted from 1"):
        LogSettings(profile_steps=[0])
    with pytest.raises(ConfigError, match="component_norms_every=-1"):
        LogSettings(component_norms_every=-1)
    for package in ("wandb", "mlflow"):
        try:
            __import__(package)
        except ImportError:
            with pytest.raises(
                ConfigError, match=rf"{package} is not installed; pip install .*\[{package}\]"
            ):
                LogSettings(**{package: "x"}).check_installed()


def test_mlflow_goes_on_with_the_same_run(tmp_path, monkeypatch):
    calls = []
    started = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    fake = SimpleNamespace(
        set_experiment=lambda name: calls.append(("experiment", name)),
        start_run=lambda **arguments: calls.append(("start", arguments)) or started,
        log_metrics=lambda values, step: calls.append(("log", values, step)),
        end_run=lambda: calls.append(("end",)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for step in (1, 2):
        [tracker] = open_trackers(LogSettings(mlflow="prism"), tmp_path)
        tracker.log({"train/loss:x": 2.0}, step)
        tracker.close()
    assert calls == [
        ("experiment", "prism"), ("start", {"run_name": tmp_path.name}), ("log", {"train/loss_x": 2.0}, 1), ("end",),
        ("experiment", "prism"), ("start", {"run_id": "r1"}), ("log", {"train/loss_x": 2.0}, 2), ("end",),
    ]  # fmt: skip


def test_wandb_itself_accepts_these_calls(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        [tracker] = open_trackers(LogSettings(wandb="prism"), tmp_path)
        tracker.log({"train/loss": 2.0}, step)
        tracker.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
