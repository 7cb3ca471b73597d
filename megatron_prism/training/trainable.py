"""Which parameters a run trains: all, or those of self-attention only (the paper's second long-context variant)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models.architecture import ATTENTION, Architecture
from megatron_prism.pipeline.config import one_of
from megatron_prism.platform.process_groups import ParallelConfig

if TYPE_CHECKING:
    from torch import Tensor

TRAINABLE = ("all", "attention")
# Query, key, value and output projections, by their names under either backend; not the norm before them, which
# Transformer Engine keeps in the same module.
_PROJECTION = re.compile(r"\.self_attention\.linear_(qkv|proj)\.weight$")


def check_trainable(trainable: str, architecture: Architecture, parallel: ParallelConfig) -> None:
    """Refuse what cannot be trained.

    Raises:
        ConfigError: for an unknown choice, or attention only in a model that has none.
        ParallelError: where the layout does not fit the model, or a pipeline stage would have nothing to train and its
            optimizer could not be resumed.
    """
    one_of(trainable, TRAINABLE, "trainable")
    architecture.check_parallel(parallel)
    pattern = architecture.hybrid_pattern
    if trainable == "all" or pattern is None:
        return
    if ATTENTION not in pattern:
        raise ConfigError(
            f"trainable=attention: hybrid_pattern={pattern} has no attention layer ('{ATTENTION}'); use trainable=all"
        )
    size = len(pattern) // parallel.pipeline_model_parallel_size
    stages = [pattern[start : start + size] for start in range(0, len(pattern), size)]
    idle = [stage for stage in stages if ATTENTION not in stage]
    if idle and not parallel.use_distributed_optimizer:
        raise ParallelError(
            f"trainable=attention: the pipeline stage with layers {idle[0]} has no attention to train, which needs "
            "use_distributed_optimizer=true; or use fewer pipeline stages"
        )


def freeze(model: Any, trainable: str) -> None:
    """Switch off the gradients of what is not trained; before DDP wraps the model, which gives buffers to the rest."""
    if trainable == "all":
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_PROJECTION.search(name) is not None)
    if model.pre_process and model.config.recompute_granularity == "full":
        # A recomputed layer passes gradients on only if its input has one, and a frozen embedding gives none.
        model.embedding.register_forward_hook(_require_gradient)


def _require_gradient(module: Any, inputs: Any, output: Tensor) -> Tensor:
    import torch

    return output.requires_grad_() if torch.is_grad_enabled() else output
