"""Updates of reinforcement learning that are not finite are left out, and a run of them stops."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager

import pytest
import torch
from stage_runs import run, weights
from tiny_rl import make_inputs, tiny_run

from megatron_prism.errors import ConfigError, TrainingError
from megatron_prism.rl import policy
from megatron_prism.training.guard import GuardSettings


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("guard"), "dense")


@contextmanager
def poisoned(monkeypatch, *updates: int):
    """The loss of these updates (from 1) is NaN."""
    honest, count = policy.Policy.update, [0]
    loss = policy.policy_loss

    def update(self, *arguments, **named):
        count[0] += 1
        return honest(self, *arguments, **named)

    def spoiled(batch, objective):
        found, metrics = loss(batch, objective)
        return (found * math.nan if count[0] in updates else found), metrics

    with monkeypatch.context() as patched:
        patched.setattr(policy.Policy, "update", update)
        patched.setattr(policy, "policy_loss", spoiled)
        yield


def test_an_update_that_is_not_finite_is_left_out(inputs, tmp_path, monkeypatch, caplog):
    stage = tiny_run("dense", steps=3)
    with poisoned(monkeypatch, 2):
        made = run(stage, inputs, tmp_path)
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped_updates") for line in lines] == [None, 1, None]
    assert ["loss" in line for line in lines] == [True, False, True]
    assert made.metrics["skipped_updates"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(made.path).values())
    assert (
        "step 2: loss nan or gradient norm nan is not finite, so the update is not applied; prompts "
        in caplog.text
    )


def test_a_run_of_them_stops(inputs, tmp_path, monkeypatch):
    stage = tiny_run("dense", steps=5, checkpoint_every=1, guard=GuardSettings(max_skipped=1, spike_zscore=0))
    with (
        poisoned(monkeypatch, 3, 4),
        pytest.raises(TrainingError, match=r"kept is the checkpoint of step 2 in"),
    ):
        run(stage, inputs, tmp_path)
    assert run(stage, inputs, tmp_path).metrics["steps"] == 5


def test_spikes_are_refused():
    with pytest.raises(ConfigError, match="has no level that a spike could leave"):
        tiny_run("dense", guard=GuardSettings(spike_zscore=6.0))
