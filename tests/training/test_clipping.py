"""Clipping of gradients: a limit scales them, 0 leaves them as they are, and the norm is reported either way."""

from __future__ import annotations

import pytest
import torch
from parallel_runs import VOCABULARY, Motifs

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import Trainer

DENSE = Architecture("granite", VOCABULARY, 32, 2, 48, 4, 2, 8)


def one_step(clip_grad: float, distributed: bool) -> tuple[float, list[torch.Tensor]]:
    """The reported norm, and the gradients that Adam saw."""
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    settings = OptimizerSettings(eps=1e-8, clip_grad=clip_grad)
    with session(parallel, 1):
        run = Trainer(DENSE, parallel, BatchConfig(16, 1, 1), settings, dtype=torch.float32, backend="torch")
        norm = run.step(Motifs(16), 0, 1e-3)[1]
        return norm, [each.grad.clone() for each in run.optimizer.get_parameters()]


@pytest.mark.parametrize("distributed", [True, False])
def test_zero_means_no_clipping(distributed: bool) -> None:
    free, gradients = one_step(0.0, distributed)
    norm, clipped = one_step(0.01, distributed)
    assert free == norm > 0.1
    assert float(torch.cat([each.flatten() for each in gradients]).norm()) == pytest.approx(free, rel=1e-5)
    assert float(torch.cat([each.flatten() for each in clipped]).norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_other_limits_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="clip_grad"):
        OptimizerSettings(clip_grad=value)
