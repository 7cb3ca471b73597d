"""Resuming with every implementation of Adam: torch's, Transformer Engine's and Apex's (stand-ins of their layouts)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_imitation.fused_adam import KINDS, fused_adam
from parallel_runs import HYBRID, VOCABULARY, Motifs

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import unwrap
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training import adam_state
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

DENSE = Architecture("granite", VOCABULARY, 32, 2, 48, 4, 2, 8)
MODELS = {"dense": DENSE, "hybrid": HYBRID}
ADAMS = ("torch", *KINDS)
LENGTH, BROKEN_AFTER, STEPS = 16, 3, 6


@pytest.fixture(autouse=True)
def one_process():
    with session(seed=3):
        yield


def trainer(model: str = "dense", distributed: bool = True, dtype: torch.dtype = torch.float32) -> Trainer:
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    settings = OptimizerSettings(eps=1e-8)
    return Trainer(MODELS[model], parallel, BatchConfig(LENGTH, 2, 2), settings, dtype=dtype, backend="torch")


def losses(run: Trainer, first: int, last: int) -> list[tuple[float, float]]:
    return [run.step(Motifs(LENGTH), 2 * step, 1e-2) for step in range(first, last)]


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in unwrap(run.models[0]).named_parameters()}


def break_off(folder: Path, run: Trainer, after: int = BROKEN_AFTER) -> Path:
    losses(run, 0, after)
    save_checkpoint(folder / "step", run.models, run.optimizer, TrainingState(after))
    return folder / "step"


@pytest.mark.parametrize(
    ("model", "distributed", "dtype"),
    [
        ("dense", True, torch.bfloat16),
        ("dense", False, torch.float32),
        ("hybrid", True, torch.float32),
        ("hybrid", False, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("adam", ADAMS)
def test_a_resumed_run_goes_on_bit_for_bit(adam, model, distributed, dtype, tmp_path):
    with fused_adam(adam):
        run = trainer(model, distributed, dtype)
        expected_class = KINDS.get(adam, torch.optim.AdamW)
        assert isinstance(run.optimizer.chained_optimizers[0].optimizer, expected_class)
        folder = break_off(tmp_path, run)
        expected = losses(run, BROKEN_AFTER, STEPS)
        resumed = trainer(model, distributed, dtype)
        load_checkpoint(folder, resumed.models, resumed.optimizer)
        assert losses(resumed, BROKEN_AFTER, STEPS) == expected
    after = weights(run)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights(resumed).items())


@pytest.mark.parametrize(("adam", "distributed"), [("torch", False), ("te", True), ("apex", False)])
def test_a_checkpoint_before_the_first_step(adam, distributed, tmp_path):
    """A run may save before it has trained, for example when its first step was skipped."""
    with fused_adam(adam):
        run = trainer(distributed=distributed)
        folder = break_off(tmp_path, run, after=0)
        expected = losses(run, 0, 2)
        resumed = trainer(distributed=distributed)
        load_checkpoint(folder, resumed.models, resumed.optimizer)
        assert losses(resumed, 0, 2) == expected


@pytest.mark.parametrize(
    ("written_by", "read_by", "distributed"),
    [("te", "torch", True), ("te", "torch", False), ("torch", "te", True), ("torch", "apex", False)],
)
def test_another_adam_goes_on_with_the_same_state(written_by, read_by, distributed, tmp_path):
    """The formulas are the same up to rounding, so a lost moment or step count would show in the second loss."""
    with fused_adam(written_by):
        run = trainer(distributed=distributed)
        folder = break_off(tmp_path, run)
        expected = [loss for loss, _ in losses(run, BROKEN_AFTER, STEPS)]
    with fused_adam(read_by):
        resumed = trainer(distributed=distributed)
        load_checkpoint(folder, resumed.models, resumed.optimizer)
        assert [loss for loss, _ in losses(resumed, BROKEN_AFTER, STEPS)] == pytest.approx(expected, rel=1e-6)
        inner = resumed.optimizer.chained_optimizers[0].optimizer
        for group in inner.param_groups:
            for parameter in group["params"]:
                step = inner.state[parameter]["step"] if read_by == "torch" else group["step"]
                assert step == STEPS


def test_the_settings_of_the_groups_are_those_of_the_resumed_run(tmp_path):
    folder = break_off(tmp_path, trainer())
    resumed = trainer()
    inner = resumed.optimizer.chained_optimizers[0].optimizer
    for group in inner.param_groups:
        group["betas"], group["fused"] = (0.5, 0.6), False
    load_checkpoint(folder, resumed.models, resumed.optimizer)
    assert all(group["betas"] == (0.5, 0.6) and not group["fused"] for group in inner.param_groups)


def test_without_steps_of_their_own_a_resume_is_silently_wrong(tmp_path, monkeypatch):
    run = trainer()
    folder = break_off(tmp_path, run)
    expected = losses(run, BROKEN_AFTER, STEPS)
    monkeypatch.setattr(adam_state, "_separate_steps", lambda inner, group: None)
    resumed = trainer()
    load_checkpoint(folder, resumed.models, resumed.optimizer)
    wrong = losses(resumed, BROKEN_AFTER, STEPS)
    # The first loss is of the loaded weights; every later one follows a step with the wrong count.
    assert wrong[0] == expected[0]
    assert wrong[1:] != expected[1:]


def test_upstream_alone_cannot_load_torchs_adam(tmp_path, monkeypatch):
    folder = break_off(tmp_path, trainer())
    resumed = trainer()
    monkeypatch.setattr(adam_state, "load_state", lambda optimizer, loaded: optimizer.load_state_dict(loaded))
    with pytest.raises(KeyError, match="step"):
        load_checkpoint(folder, resumed.models, resumed.optimizer)


def test_a_fused_adam_that_is_treated_like_torchs_cannot_resume(tmp_path, monkeypatch):
    """The fault of choosing by the device: a `step` with every parameter, which a FusedAdam does not know."""
    with fused_adam("te"):
        folder = break_off(tmp_path, trainer())
        resumed = trainer()
        monkeypatch.setattr(adam_state, "keeps_steps_per_parameter", lambda inner: True)
        with pytest.raises((KeyError, AssertionError)):
            load_checkpoint(folder, resumed.models, resumed.optimizer)


@pytest.mark.parametrize("adam", ["torch", "te"])
def test_without_prepared_state_a_save_before_the_first_step_fails(adam, tmp_path, monkeypatch):
    monkeypatch.setattr(adam_state, "prepare_state", lambda optimizer: None)
    with fused_adam(adam), pytest.raises((AssertionError, KeyError)):
        break_off(tmp_path, trainer(), after=0)
