"""Reads the hidden states of a model while it runs: after the embedding, after each layer, and after the final norm.

The points are the same for Megatron's model and for transformers' (one for each Hugging Face layer), so that states of
one can be compared with those of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import family


@dataclass(frozen=True)
class Points:
    """The modules between which hidden states are read.

    Attributes:
        first: its input is the output of the embedding.
        layers: the last module of each Hugging Face layer.
        norm: the final norm.
    """

    first: nn.Module
    layers: list[nn.Module]
    norm: nn.Module


def megatron_points(model: Any, architecture: Architecture) -> Points:
    """The points of a whole Megatron model (pipeline parallel size 1)."""
    decoder = model.decoder
    layers = list(decoder.layers)
    step = family(architecture.family).layers_per_hf_layer(architecture)
    # TransformerBlock and MambaStack name it differently.
    norm = decoder.final_norm if architecture.is_hybrid else decoder.final_layernorm
    return Points(layers[0], layers[step - 1 :: step], norm)


def transformers_points(model: Any) -> Points:
    """The points of transformers' causal language model.

    Raises:
        ConfigError: if its base model does not have them under the usual names.
    """
    base = model.base_model
    norm = getattr(base, "norm", None) or getattr(base, "norm_f", None)
    layers = getattr(base, "layers", None)
    if norm is None or not layers:
        raise ConfigError(
            f"{type(base).__name__}: transformers' model has no 'layers' with a 'norm' or 'norm_f' after them, so its "
            "hidden states cannot be read"
        )
    return Points(layers[0], list(layers), norm)


@contextmanager
def recorded(points: Points, keep: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """A list to which every forward pass adds what `keep` makes of each point's states, in order.

    The order is embedding, layers, final norm. Shapes are the model's: Megatron's states are `[seq, batch, hidden]`,
    those of transformers `[batch, seq, hidden]`.
    """
    states: list[Tensor] = []

    def before(module: nn.Module, arguments: Any, keywords: Any) -> None:
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        states.append(keep(hidden.detach()))

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(keep(hidden.detach()))

    hooks = [points.first.register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [each.register_forward_hook(after) for each in (*points.layers, points.norm)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
