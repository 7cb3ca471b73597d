"""What a layer keeps for the backward pass, and what it computes again.

full: a layer keeps only its input. Megatron-Core 0.16.1 has this for the layers of a GPTModel
(transformer_block.py:735); its MambaStack ignores the `recompute_*` settings (mamba_block.py:321) and would silently
keep all activations.

selective: the inputs of linear layers are computed again where that takes no matrix product: the outputs of norms, of
activation functions and of Mamba's gated norm. Such a tensor carries a recipe, and the linear layer that uses it keeps
the recipe in place of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import tensor_parallel
from torch import Tensor, nn

RECIPE = "recipe"
# The attribute of modules that can give their output a recipe.
SELECTIVE = "recompute_output"


@dataclass(frozen=True)
class Recipe:
    """How to compute a tensor again: `function(*inputs)`. The inputs are kept anyway."""

    function: Callable[..., Tensor]
    inputs: tuple[Any, ...]

    @torch.no_grad()
    def compute(self) -> Tensor:
        return self.function(*self.inputs)


def with_recipe(output: Tensor, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`output`, which equals `function(*inputs)`, with that recipe."""
    if output.requires_grad:
        detached = tuple(each.detach() if isinstance(each, Tensor) else each for each in inputs)
        setattr(output, RECIPE, Recipe(function, detached))
    return output


class KeepsRecipe:
    """Mixin for linear layers: for an input with a recipe, the recipe is kept for backward and not the tensor."""

    def forward(self, input_: Tensor, *inputs: Any, **keywords: Any) -> Any:
        recipe: Recipe | None = getattr(input_, RECIPE, None)
        if recipe is None:
            return super().forward(input_, *inputs, **keywords)  # type: ignore[misc]
        pointer, count = input_.data_ptr(), input_.numel()

        def pack(tensor: Tensor) -> Any:
            same = tensor.data_ptr() == pointer and tensor.numel() == count
            return (recipe, tensor.shape) if same else tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            return super().forward(input_, *inputs, **keywords)  # type: ignore[misc]


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    recipe, shape = packed
    tensor: Tensor = recipe.compute().view(shape)
    return tensor


def install_selective(model: nn.Module) -> None:
    """Let the modules of a model that can do so give their outputs recipes."""
    for module in model.modules():
        if hasattr(module, SELECTIVE):
            setattr(module, SELECTIVE, True)


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
