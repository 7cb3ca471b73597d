"""Reinforcement learning that is given more steps goes on from the shorter run, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from stage_runs import run, weights
from tiny_rl import make_inputs, tiny_run

from megatron_prism.training.checkpoint_settings import CheckpointSettings
from megatron_prism.training.schedule import Schedule

SCHEDULE = Schedule(lr=3e-3, style="linear", final_factor=0.0, steps=4)


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        line.pop("seconds", None)
    return found


def test_two_steps_and_then_four_are_four_steps(tmp_path):
    inputs = make_inputs(tmp_path / "inputs", "dense")
    kept = CheckpointSettings(keep_optimizer=True)
    stage = tiny_run("dense", schedule=SCHEDULE, steps=4, checkpoints=kept)
    whole = run(stage, inputs, tmp_path / "whole")
    short = run(replace(stage, steps=2), inputs, tmp_path / "run")
    longer = run(stage, inputs, tmp_path / "run")
    assert longer.receipt.continues == short.fingerprint
    assert lines(longer.path) == lines(whole.path)
    assert {file.name for file in (longer.path / "answers").iterdir()} == {
        file.name for file in (whole.path / "answers").iterdir()
    }
    found = weights(longer.path)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(whole.path).items())
