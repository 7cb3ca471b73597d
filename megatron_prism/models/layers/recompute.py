"""Activation checkpointing for hybrids: a layer keeps only its input, and its backward pass computes the layer again.

Megatron-Core 0.16.1 has it for the layers of a GPTModel (transformer_block.py:735); its MambaStack ignores the
`recompute_*` settings (mamba_block.py:321) and would silently keep all activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from megatron.core import tensor_parallel
from torch import Tensor, nn


def install_recompute(layers: Iterable[nn.Module]) -> None:
    """Recompute each of these layers separately. Megatron's `checkpoint` also restores the random states."""
    for layer in layers:
        layer.forward = _recomputed(layer, layer.forward)


def _recomputed(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(hidden_states: Tensor, **context: Any) -> Any:
        # An input without gradient (frozen layers before it) would leave the layer's own weights without one.
        if not (layer.training and torch.is_grad_enabled() and hidden_states.requires_grad):
            return forward(hidden_states, **context)
        return tensor_parallel.checkpoint(lambda hidden: forward(hidden, **context), False, hidden_states)

    return run
