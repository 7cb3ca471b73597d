"""Building a model whose weights are loaded afterwards: memory on the device, and no random numbers.

Drawing the weights of an 8B model takes every rank minutes on a CPU, and loading throws them away.
"""

from __future__ import annotations

from typing import Any

import torch


def leave(weight: torch.Tensor) -> torch.Tensor:
    """An initialisation that draws nothing."""
    return weight


# Not `perform_initialization=False`: then upstream does not mark the weights as tensor-parallel
# (tensor_parallel/layers.py:855), and gradient norms and parameter counts would leave out all ranks except the first.
UNINITIALIZED: dict[str, Any] = {
    "use_cpu_initialization": False,
    "init_method": leave,
    "output_layer_init_method": leave,
    "embedding_init_method": leave,
}


def move_to_device(model: Any, device: torch.device) -> None:
    """Move all parameters and buffers to the device that computes; a model without memory stays where it is.

    This must happen before DDP wraps the model: the distributed optimizer's buffers hold only the parameters that are
    trained, so frozen ones, and all those of a run without it, would stay behind.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    model.to(device)
    rotary = getattr(model, "rotary_pos_emb", None)
    if rotary is not None:
        # Upstream keeps the frequencies as a plain attribute.
        rotary.inv_freq = rotary.inv_freq.to(device)
