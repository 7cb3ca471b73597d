"""The whole way of a tiny model through the product: training, resuming, extension, export, generation and RL.

`travel` runs it, with or without the imitation of a GPU, and returns numbers that must be the same both times.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_artifacts import make_artifact
from tiny_models import make_checkpoint
from tiny_rl import make_inputs, tiny_run

from megatron_prism.conversion.stage import ExportHF
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.extension import ContextExtension
from megatron_prism.models.families import architecture_from_config
from megatron_prism.models.rope import RopeScaling
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.record import RLLog
from megatron_prism.rl.settings import LoopSettings
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import Trainer

SHORT, LONG, STEPS, VOCABULARY = 32, 64, 3, 700
MODELS = {"dense": "llama", "hybrid": "nemotron-h"}
YARN = RopeScaling(rope_type="yarn", factor=2.0, original_max_position_embeddings=SHORT)
EXTENSIONS = {
    "dense": ContextExtension(
        LONG, rope_scaling=RopeScaling(rope_type="yarn", factor=2.0, original_max_position_embeddings=SHORT)
    ),
    "hybrid": ContextExtension(LONG),
}
PROMPTS = ["ABC", "CABBAGE", "D"]


class Interrupted(Exception):
    """Stands for the loss of a machine."""


def train(architecture: Architecture, **changes: Any) -> Train:
    fields: dict[str, Any] = {
        "architecture": architecture,
        "mixture": "shoebox-base",
        "steps": STEPS,
        "batch": BatchConfig(SHORT, 1, 2),
        "schedule": Schedule(lr=1e-2, warmup_steps=1),
        "optimizer": OptimizerSettings(eps=1e-8),
        "validation_batches": 1,
    }
    return Train(**(fields | changes))


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without what depends on the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("tokens_per_second", "tflops", "mfu", "seconds", "memory_gib")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


@contextlib.contextmanager
def interrupted_after(steps: int) -> Iterator[None]:
    """Within the block, a trainer stops in its next step after `steps` steps."""
    step, done = Trainer.step, 0

    def failing(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        if done == steps:
            raise Interrupted
        done += 1
        return step(self, *args, **kwargs)

    Trainer.step = failing  # type: ignore[method-assign]
    try:
        with contextlib.suppress(Interrupted):
            yield
    finally:
        Trainer.step = step  # type: ignore[method-assign]


def travel(inputs: Mapping[str, Artifact], folder: Path, again: bool) -> dict[str, dict[str, Any]]:
    """Every pass of every kind of model.

    Args:
        folder: an empty folder.
        again: also interrupt each run of training and let it resume.
    """
    return {kind: _travel(kind, inputs, folder / kind, again) for kind in MODELS}


def _travel(kind: str, inputs: Mapping[str, Artifact], folder: Path, again: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    hf = make_checkpoint(MODELS[kind], folder / "hf", vocab_size=VOCABULARY, max_position_embeddings=SHORT)
    architecture = architecture_from_config(json.loads((hf / "config.json").read_text()))

    base = train(architecture, init_from=str(hf), checkpoint_every=2, validate_every=2)
    trained = make_artifact(base, folder / "trained", **inputs)
    found["train"], found["receipt"] = records(trained.path), _lasting(trained.metrics)
    if again:
        resumed = folder / "resumed"
        resumed.mkdir()
        with interrupted_after(STEPS - 1):
            base.run(inputs, resumed)
        base.run(inputs, resumed)
        found["train resumed"] = records(resumed)

    longer = train(
        architecture, steps=2, extension=EXTENSIONS[kind], batch=BatchConfig(LONG, 1, 2), trainable="attention",
        recompute="full", parallel=ParallelConfig(use_distributed_optimizer=False),
    )  # fmt: skip
    extended = make_artifact(longer, folder / "extended", init=trained, **inputs)
    found["extension"], found["extension receipt"] = records(extended.path), _lasting(extended.metrics)

    # It runs the checkpoint in Megatron-Core and the export in transformers, and fails if they differ.
    exported = make_artifact(ExportHF(), folder / "exported", model=extended)
    found["export"] = exported.metrics["top1_agreement"]

    found |= reinforce(kind, folder / "rl", again)
    found["generation"] = generate(folder / "rl" / "inputs")
    return found


def _lasting(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: metrics[key] for key in ("validation", "parameters", "trainable_parameters", "tokens", "steps")
    }


@contextlib.contextmanager
def interrupted_in_rl_step(number: int) -> Iterator[None]:
    """Within the block, a run of reinforcement learning stops after the update of this step, before it is saved."""
    log = RLLog.step

    def failing(self: RLLog, step: int, *arguments: Any) -> None:
        if step == number:
            raise Interrupted
        log(self, step, *arguments)

    RLLog.step = failing  # type: ignore[method-assign]
    try:
        with contextlib.suppress(Interrupted):
            yield
    finally:
        RLLog.step = log  # type: ignore[method-assign]


def reinforce(kind: str, folder: Path, again: bool) -> dict[str, Any]:
    """Two steps of reinforcement learning, and the second again from the checkpoint after the first."""
    inputs = make_inputs(folder / "inputs", kind)
    loop = LoopSettings(prompts_per_step=2, samples_per_prompt=2, reference_alpha=0.5, reference_interval=1)
    stage = tiny_run(kind, steps=2, checkpoint_every=1, loop=loop, max_new_tokens=6)
    whole, resumed = folder / "whole", folder / "resumed"
    whole.mkdir()
    stage.run(inputs, whole)
    found = {"rl": records(whole)}
    if again:
        resumed.mkdir()
        with interrupted_in_rl_step(2):
            stage.run(inputs, resumed)
        stage.run(inputs, resumed)
        found["rl resumed"] = records(resumed)
    return found


def generate(inputs: Path) -> list[int]:
    """How long the answers are that an engine of its own samples from a model folder, in the device's dtype."""
    with MegatronEngine.load(inputs / "model", inputs / "tokenizer") as engine:
        groups = engine.generate(PROMPTS, SamplingParams(max_new_tokens=4, seed=3))
    return [len(sample.token_ids) for group in groups for sample in group]
