"""When a trainer is deleted, its model and the process groups that the model refers to are freed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS

from megatron_prism.models.families import architecture_from_config
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer


def model_of_a_trainer(hold: bool) -> Any:
    """A weak reference to the model of a deleted trainer; with `hold`, the model's config refers to the optimizer."""
    architecture = architecture_from_config(CONFIGS["granite"])
    batch, settings = BatchConfig(16, 1, 1), OptimizerSettings()
    trainer = Trainer(architecture, ParallelConfig(), batch, settings, dtype=torch.float32, backend="torch")
    if hold:
        trainer.config.grad_scale_func = trainer.optimizer.scale_loss
    return weakref.ref(trainer.models[0].module)


@pytest.mark.parametrize("hold", [False, True])
def test_the_model_goes_with_its_trainer(hold: bool) -> None:
    """Negative control: if the config refers to the optimizer, as in upstream's loop, the model is not collected."""
    with session(ParallelConfig(), 1):
        model = model_of_a_trainer(hold)
        gc.collect()
        assert (model() is None) is not hold


def test_the_session_frees_what_is_left() -> None:
    """The next stage of a run in the same process has the memory, and the threads of the groups end."""
    gc.disable()
    try:
        with session(ParallelConfig(), 1):
            model = model_of_a_trainer(hold=False)
            assert model() is not None, "nothing was left, so this test shows nothing"
        assert model() is None
    finally:
        gc.enable()
