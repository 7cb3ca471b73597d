"""A forward pass through the ranks of a pipeline, one after another, for sampling and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def pipeline_forward(models: Sequence[Any], tokens: Tensor) -> Tensor | None:
    """Logits `[tokens, vocabulary]` of a row `[1, tokens]`; None on all pipeline ranks except the last.

    Args:
        models: this rank's chunks, in order.
    """
    from megatron.core import parallel_state

    group = parallel_state.get_pipeline_model_parallel_group()
    rank, size = group.rank(), group.size()
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    output: Tensor | None = None
    for number, model in enumerate(models):
        if rank or number:
            config = model.config
            parts = config.tensor_model_parallel_size if config.sequence_parallel else 1
            hidden = torch.empty(
                tokens.shape[1] // parts,
                1,
                config.hidden_size,
                dtype=config.params_dtype,
                device=tokens.device,
            )
            dist.recv(hidden, group_src=(rank - 1) % size, group=group)
            model.set_input_tensor(hidden)
        output = model(tokens, positions, None, runtime_gather_output=True)
        if rank < size - 1 or number < len(models) - 1:
            assert output is not None
            dist.send(output.contiguous(), group_dst=(rank + 1) % size, group=group)
            output = None
    return None if output is None else output[0]


def broadcast_to_model_ranks(numbers: Tensor) -> None:
    """Copy `numbers` of the last pipeline stage (of its first tensor-parallel rank) to all ranks of the model."""
    from megatron.core import parallel_state

    group = parallel_state.get_model_parallel_group()
    if group.size() > 1:
        size = parallel_state.get_tensor_model_parallel_world_size()
        dist.broadcast(numbers, group_src=group.size() - size, group=group)
