"""Granite's multipliers. They are never folded into weights, which would change Adam's effective step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from torch import nn


def scaled_bias_dropout_add(residual_multiplier: float) -> Callable[[bool, bool], Callable]:
    """Megatron's bias-dropout-add with the branch scaled first: residual + residual_multiplier * x."""
    if residual_multiplier == 1.0:
        return get_bias_dropout_add

    def get(training: bool, fused: bool) -> Callable:
        add = get_bias_dropout_add(training, fused)

        def scaled(x_with_bias: Any, residual: Any, probability: float) -> Any:
            x, bias = x_with_bias
            if bias is None and not probability and x.dtype == residual.dtype:
                return torch.add(residual, x, alpha=residual_multiplier)
            return add(
                (x * residual_multiplier, None if bias is None else bias * residual_multiplier),
                residual,
                probability,
            )

        return scaled

    return get


def install_embedding_multiplier(embedding: nn.Module, multiplier: float) -> None:
    """Multiply the embedding's output `[seq, batch, hidden]`."""
    if multiplier != 1.0:
        embedding.register_forward_hook(lambda module, inputs, output: output * multiplier)
