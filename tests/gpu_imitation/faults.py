"""Faults that the product had on a GPU, each brought back in an imitated one; and the same steps without the fault."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from parallel_runs import HYBRID, VOCABULARY, Motifs

from gpu_imitation.fused_adam import fused_adam
from megatron_prism.models import build
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform import randomness
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training import adam_state, checkpoint, parameter_count
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import Trainer

MODELS = {"dense": Architecture("llama", VOCABULARY, 32, 2, 48, 4, 2, 8), "hybrid": HYBRID}
LENGTH = 16


def trainer(
    kind: str = "dense", *, distributed: bool = True, bf16: bool = False, trainable: str = "all"
) -> Trainer:
    dtype = torch.bfloat16 if bf16 else torch.float32
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    return Trainer(
        MODELS[kind], parallel, BatchConfig(LENGTH, 2, 2), OptimizerSettings(eps=1e-8), dtype=dtype, backend="torch",
        trainable=trainable,
    )  # fmt: skip


def losses(run: Trainer, first: int, last: int) -> list[float]:
    return [run.step(Motifs(LENGTH), 2 * step, 1e-2)[0] for step in range(first, last)]


def resume(folder: Path, adam: str, kind: str) -> str:
    """Two steps, a checkpoint and two more; a second trainer takes those from the checkpoint."""
    with fused_adam(adam):
        run = trainer(kind, bf16=True)
        losses(run, 0, 2)
        save_checkpoint(folder / "step", run.models, run.optimizer, TrainingState(2))
        resumed = trainer(kind, bf16=True)
        load_checkpoint(folder / "step", resumed.models, resumed.optimizer)
        return "same" if losses(run, 2, 4) == losses(resumed, 2, 4) else "different"


def finish(folder: Path) -> str:
    return str(parameter_count.count_parameters(trainer().models))


def train_attention(folder: Path) -> str:
    losses(trainer("hybrid", trainable="attention"), 0, 1)
    return "trained"


def train_without_distributed_optimizer(folder: Path) -> str:
    losses(trainer(distributed=False), 0, 1)
    return "trained"


def train_with_a_buffer(folder: Path) -> str:
    """A buffer that each forward pass reads."""
    run = trainer()
    layer = run.models[0].module.decoder.layers[0]
    layer.register_forward_hook(lambda module, inputs, output: (output[0] + module.shift, *output[1:]))
    layer.register_buffer("shift", torch.zeros(1, 1, 32), persistent=False)
    build.move_to_device(run.models[0].module, torch.device("cuda", 0))
    losses(run, 0, 1)
    return "trained"


def draw_after_a_checkpoint(folder: Path) -> str:
    """Random numbers of the device, such as dropout's, are those of the unbroken run."""
    run = trainer()
    save_checkpoint(folder / "step", run.models, run.optimizer, TrainingState(0))
    expected = torch.rand(3, device="cuda")
    load_checkpoint(folder / "step", run.models, run.optimizer)
    return "same" if torch.equal(torch.rand(3, device="cuda"), expected) else "different"


def _without_device_state(state: dict[str, Any]) -> None:
    randomness.restore_random_state(state | {"device": None})


def _as_upstream(optimizer: Any, loaded: Any) -> None:
    optimizer.load_state_dict(loaded)


def _plant_steps(inner: Any, group: dict[str, Any], parameter: torch.Tensor) -> None:
    """What was done to every Adam on a GPU: the state of torch's, with a `step` for each parameter."""
    moments = {
        name: torch.zeros_like(parameter.data, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")
    }
    inner.state[parameter].update(step=torch.tensor(0.0), **moments)


Fault = tuple[tuple[Any, str, Any], ...]
STEP_EVERYWHERE: Fault = ((adam_state, "_create", _plant_steps), (adam_state, "load_state", _as_upstream))
LEFT_BEHIND: Fault = ((build, "move_to_device", lambda model, device: None),)
# What is run, and what brings its fault back: owner, name and faulty function of each replacement.
CASES: dict[str, tuple[Any, Fault]] = {
    "resume with torch's Adam": (
        lambda folder: resume(folder, "torch", "dense"),
        ((adam_state, "load_state", _as_upstream),),
    ),
    "resume with Transformer Engine's Adam": (lambda folder: resume(folder, "te", "hybrid"), STEP_EVERYWHERE),
    "resume with Apex's Adam": (lambda folder: resume(folder, "apex", "dense"), STEP_EVERYWHERE),
    "parameter count": (finish, ((parameter_count, "device", lambda: torch.device("cpu")),)),
    "frozen weights": (train_attention, LEFT_BEHIND),
    "weights": (train_without_distributed_optimizer, LEFT_BEHIND),
    "buffers": (train_with_a_buffer, LEFT_BEHIND),
    "random state": (
        draw_after_a_checkpoint,
        ((checkpoint, "restore_random_state", _without_device_state),),
    ),
}


def outcomes(folder: Path) -> dict[str, list[str]]:
    """Of each case, what happens without the fault and with it."""
    found = {}
    for name, (case, fault) in CASES.items():
        found[name] = [_outcome(case, folder / name / "without")]
        with contextlib.ExitStack() as changes:
            for change in fault:
                changes.enter_context(patch.object(*change))
            found[name].append(_outcome(case, folder / name / "with"))
    return found


def _outcome(case: Any, folder: Path) -> str:
    folder.mkdir(parents=True)
    with session(seed=3):
        try:
            return case(folder)
        except (RuntimeError, KeyError, AssertionError) as error:
            return f"{type(error).__name__}: {error}"
