"""The parameters that a run trains: all, or only those of self-attention (the paper's second long-context variant)."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models.architecture import ATTENTION, Architecture
from megatron_prism.pipeline.config import one_of
from megatron_prism.platform.process_groups import ParallelConfig

if TYPE_CHECKING:
    from torch import Tensor

TRAINABLE = ("all", "attention")
# The names of the query, key, value and output projections in both backends. The norm before them is not trained, but
# Transformer Engine keeps it in the same module.
_PROJECTION = re.compile(r"\.self_attention\.linear_(qkv|proj)\.weight$")


def check_trainable(trainable: str, architecture: Architecture, parallel: ParallelConfig) -> None:
    """Check that the model and the layout support this choice.

    Raises:
        ConfigError: if the choice is unknown, or "attention" is chosen for a model without attention layers.
        ParallelError: if the layout does not fit the model, or if a pipeline stage would have nothing to train, so that
            its optimizer could not be resumed.
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
    counts = parallel.layers_per_stage(len(pattern))
    stages = [pattern[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]
    idle = [stage for stage in stages if ATTENTION not in stage]
    if idle and not parallel.use_distributed_optimizer:
        raise ParallelError(
            f"trainable=attention: the pipeline stage with layers {idle[0]} has no attention to train; set "
            "use_distributed_optimizer=true, or use fewer pipeline stages"
        )


def freeze(model: Any, trainable: str) -> None:
    """Switch off the gradients of parameters that are not trained.

    This must happen before DDP wraps the model, because DDP allocates gradient buffers for trained parameters.
    """
    if trainable == "all":
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_PROJECTION.search(name) is not None)
    if model.pre_process and model.recompute == "full":
        # A recomputed layer propagates gradients only if its input requires one, and the output of a frozen embedding
        # does not.
        model.embedding.register_forward_hook(_require_gradient)


def _require_gradient(module: Any, inputs: Any, output: Tensor) -> Tensor:
    import torch

    return output.requires_grad_() if torch.is_grad_enabled() else output
