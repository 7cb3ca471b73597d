"""A run is killed between its last step and the finished artifact: no step is repeated, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
import warm
from stage_runs import begin, records, run, weights

from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline import artifact
from megatron_prism.pipeline.artifact import RECEIPT, RESUME, Artifact
from megatron_prism.training import text_run
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import Trainer

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)
STEPS = 5
STAGE = Train(
    TINY, "shoebox-mcs", steps=STEPS, batch=BatchConfig(32, 2, 4), schedule=Schedule(lr=1e-2, warmup_steps=1),
    optimizer=OptimizerSettings(eps=1e-8), validation_batches=1, checkpoint_every=2,
)  # fmt: skip
REPEATED = 7


def die(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)


def repeat(*arguments, **keywords):
    os._exit(REPEATED)


# What the process is doing when it is killed, in the order in which a run does it.
MOMENTS = {
    "validating": lambda: setattr(text_run.TextRun, "finish", die),
    "hashing": lambda: setattr(artifact, "hash_files", die),
    "writing the receipt": lambda: setattr(artifact, "write_json", die),
    "renaming": lambda: setattr(os, "rename", die),
    "removing": lambda: setattr(artifact, "remove_resume", die),
}


def killed_when(moment, inputs, run_dir):
    stage_run = begin(STAGE, inputs, run_dir)
    MOMENTS[moment]()
    if moment != "validating":
        Trainer.step = repeat
    stage_run.seal(STAGE.run(inputs, stage_run.partial))


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    return run(STAGE, inputs, tmp_path_factory.mktemp("whole"))


def test_no_step_is_repeated_after_the_last_one(inputs, whole, tmp_path):
    for moment in MOMENTS:
        child = warm.Child(killed_when, moment, inputs, tmp_path)
        assert child.wait(120) == -signal.SIGKILL, f"{moment}: {child.stderr[-2000:]}"
    (folder,) = (tmp_path / "artifacts").glob("train-*")
    assert (folder / RESUME).exists(), "the last kill came before it was removed"
    made = Artifact.open(folder)
    made.verify()
    assert records(folder) == records(whole.path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [STEPS]
    assert all(
        torch.equal(*pair)
        for pair in zip(weights(folder).values(), weights(whole.path).values(), strict=True)
    )
    for key in ("loss", "validation", "steps", "tokens", "parameters"):
        assert made.metrics[key] == whole.metrics[key]
    assert made.metrics["tokens_per_second"] > 0
    assert not [output for output in made.receipt.outputs if output.path.startswith(RESUME)]


def test_without_the_final_state_steps_would_be_repeated(inputs, tmp_path):
    """Negative control: a run that finds only its checkpoints before the last step."""
    child = warm.Child(killed_when, "validating", inputs, tmp_path)
    assert child.wait(120) == -signal.SIGKILL
    (partial,) = (tmp_path / "artifacts").glob("train-*.partial")
    (partial / "checkpoint" / "training_state.json").unlink()
    child = warm.Child(killed_when, "hashing", inputs, tmp_path)
    assert child.wait(120) == REPEATED
    assert not (partial / RECEIPT).exists()
