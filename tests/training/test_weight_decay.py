"""Which parameters weight decay changes. All gradients are zero, so nothing else can change a weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import CONFIGS

from megatron_prism.models.families import architecture_from_config
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

LR, DECAY, STEPS = 0.1, 0.1, 5
SHRINKS = (1 - LR * DECAY) ** STEPS
DISTRIBUTED = [True, False]


def trainer(name: str, parallel: ParallelConfig, dtype: torch.dtype = torch.float32) -> Trainer:
    architecture = architecture_from_config(CONFIGS[name])
    settings = OptimizerSettings(weight_decay=DECAY)
    made = Trainer(architecture, parallel, BatchConfig(16, 1, 1), settings, dtype=dtype, backend="torch")
    with torch.no_grad():
        # Biases and norm weights may start at zero, which decay cannot change.
        for parameter in made.models[0].parameters():
            parameter.add_(0.5)
    made.optimizer.reload_model_params()
    return made


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone().float() for name, p in made.models[0].module.named_parameters()}


def steps_without_gradient(made: Trainer) -> None:
    for _ in range(STEPS):
        made.prepare_step(LR)
        made.apply_gradients()


def check(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """One-dimensional parameters stay bit for bit; all others, embeddings included, shrink by the rate times decay."""
    kept = [name for name in before if before[name].dim() == 1]
    assert kept
    for name in before:
        if name in kept:
            assert torch.equal(after[name], before[name]), name
        else:
            ratio = float(after[name].norm() / before[name].norm())
            assert ratio == pytest.approx(SHRINKS, rel=tolerance), name


@pytest.mark.parametrize("distributed", DISTRIBUTED)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_only_matrices_and_embeddings_decay(name: str, distributed: bool) -> None:
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    with session(parallel, 1):
        made = trainer(name, parallel)
        before = weights(made)
        steps_without_gradient(made)
        check(before, weights(made))


def test_a_hybrid_keeps_what_mamba_says_is_not_decayed() -> None:
    """The names are Mamba-2's own (`_no_weight_decay` in mamba_ssm/modules/mamba2.py); its convolution has a bias."""
    with session(ParallelConfig(), 1):
        vectors = {
            n.rsplit("mixer.", 1)[-1]
            for n, w in weights(trainer("nemotron-h", ParallelConfig())).items()
            if w.dim() == 1
        }
    assert {"A_log", "D", "dt_bias", "conv1d.bias", "norm.weight"} <= vectors


@pytest.mark.parametrize("distributed", DISTRIBUTED)
def test_bf16_with_fp32_main_weights(distributed: bool) -> None:
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    with session(parallel, 1):
        made = trainer("nemotron-h", parallel, torch.bfloat16)
        before = weights(made)
        steps_without_gradient(made)
        check(before, weights(made), tolerance=2e-3)


@pytest.mark.parametrize("distributed", DISTRIBUTED)
@pytest.mark.parametrize("name", ["granite", "nemotron-h"])
def test_after_a_resume(name: str, distributed: bool, tmp_path: Path) -> None:
    """This also holds after a checkpoint of an earlier version, whose groups all had the decay."""
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    with session(parallel, 1):
        old = trainer(name, parallel)
        steps_without_gradient(old)
        for group in old.optimizer.param_groups:
            group["weight_decay"] = DECAY
        save_checkpoint(tmp_path / "step", old.models, old.optimizer, TrainingState(STEPS, STEPS))
        resumed = trainer(name, parallel)
        load_checkpoint(tmp_path / "step", resumed.models, resumed.optimizer)
        before = weights(resumed)
        steps_without_gradient(resumed)
        check(before, weights(resumed))


def test_the_check_sees_decay_of_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: upstream's groups decay everything if `wd_mult` is not applied."""

    def rate_only(optimizer, lr, weight_decay):
        for group in optimizer.param_groups:
            group["lr"] = lr

    monkeypatch.setattr("megatron_prism.training.trainer.set_group_values", rate_only)
    with session(ParallelConfig(), 1):
        made = trainer("granite", ParallelConfig())
        before = weights(made)
        steps_without_gradient(made)
        with pytest.raises(AssertionError):
            check(before, weights(made))
