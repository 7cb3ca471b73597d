"""Run a stage of a test's inputs in a run folder as a graph does: with its folder, its record and its receipt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import load_weights
from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.stage import Stage
from megatron_prism.pipeline.stage_run import StageRun
from megatron_prism.platform.process_groups import session


class Stopped(Exception):
    """Ends a run as a crash would."""


def begin(stage: Stage, inputs: Mapping[str, Artifact], run_dir: Path) -> StageRun:
    """The run of `stage` in `run_dir`, whose partial folder exists or is taken over."""
    (run_dir / "artifacts").mkdir(parents=True, exist_ok=True)
    fingerprint = stage.fingerprint({name: artifact.fingerprint for name, artifact in inputs.items()})
    folder = run_dir / "artifacts" / f"{stage.kind}-{fingerprint[:12]}"
    return StageRun(stage.kind, stage, fingerprint=fingerprint, folder=folder, inputs=inputs)


def run(stage: Stage, inputs: Mapping[str, Artifact], run_dir: Path) -> Artifact:
    """The finished artifact."""
    stage_run = begin(stage, inputs, run_dir)
    return stage_run.seal(stage.run(inputs, stage_run.partial))


def run_until(stage: Stage, inputs: Mapping[str, Artifact], out: Path, step: int) -> None:
    """Run `stage` in `out` until it would begin the step after `step`, and then end it as a crash would."""
    from megatron_prism.training.trainer import Trainer

    honest = Trainer.step

    def step_until(self, dataset, consumed_samples, *rest):
        if consumed_samples >= step * stage.batch.global_batch_size:
            raise Stopped
        return honest(self, dataset, consumed_samples, *rest)

    Trainer.step = step_until
    try:
        stage.run(inputs, out)
    except Stopped:
        return
    finally:
        Trainer.step = honest
    raise AssertionError("the run was not stopped")


def records(folder: Path) -> list[dict]:
    """The lines of the steps in metrics.jsonl, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "grad_norm", "lr", "consumed_tokens")
    return [{key: line[key] for key in keys} for line in lines if "grad_norm" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a finished run."""
    with session(seed=1):
        model = build_model(Architecture.load(folder / ARCHITECTURE))
        load_weights([model], folder / CHECKPOINT)
        return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor is not None}
