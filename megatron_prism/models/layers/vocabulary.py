"""Limits a model to its tokenizer's vocabulary: rows that only pad the embedding get no probability.

A sampler never draws such a row, so its log-probabilities are over the tokenizer's tokens. A trainer that also
counted the padding would compute other log-probabilities for every token.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn


def install_vocabulary_limit(output_layer: nn.Module, limit: int) -> None:
    """Logits of rows from `limit` on become -inf; `output_layer` is Megatron's, cut over tensor-parallel ranks."""

    def mask(module: nn.Module, inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        logits, bias = output
        width = logits.shape[-1]
        # Gathered logits begin at row 0, and those of one rank at the rank's first row.
        gathered = bool(getattr(module, "gather_output", False))
        first = 0 if gathered else parallel_state.get_tensor_model_parallel_rank() * width
        beyond = torch.arange(first, first + width, device=logits.device) >= limit
        return logits.masked_fill(beyond, float("-inf")), bias

    output_layer.register_forward_hook(mask)
