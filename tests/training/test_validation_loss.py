"""Validation counts tokens, not batches: a batch that is mostly padding weighs little."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.study.small_models import DENSE
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

LENGTH = 16
ARCHITECTURE = dataclasses.replace(
    DENSE, vocab_size=64, hidden_size=32, num_layers=1, ffn_hidden_size=32, head_dim=8
)


def sample(seed: int, counted: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(64, (LENGTH + 1,), generator=torch.Generator().manual_seed(seed))
    return {
        "tokens": tokens[:-1],
        "labels": tokens[1:],
        "loss_mask": (torch.arange(LENGTH) < counted).float(),
        "position_ids": torch.arange(LENGTH),
    }


def test_the_mean_is_over_tokens():
    full, short = sample(1, LENGTH), sample(2, 2)
    with session(ParallelConfig(), 1):
        trainer = Trainer(
            ARCHITECTURE,
            ParallelConfig(),
            BatchConfig(LENGTH, 1, 1),
            OptimizerSettings(),
            dtype=torch.float32,
        )
        alone = [trainer.evaluate([each], 1) for each in (full, short)]
        both = trainer.evaluate([full, short], 2)
    assert both == pytest.approx((LENGTH * alone[0] + 2 * alone[1]) / (LENGTH + 2), rel=1e-6)
    # The mean of the batches' means is a different number.
    assert both != pytest.approx(sum(alone) / 2, rel=1e-4)
