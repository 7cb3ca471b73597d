"""Rotary frequencies: plain, or stretched for long contexts as LLaMA 3.1 does.

Megatron-Core 0.16.1 knows the llama3 form with three of its four numbers fixed (rotary_pos_embedding.py:110), so the
frequencies are computed here and handed to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_prism.errors import ConfigError


@dataclass
class RopeScaling:
    """LLaMA 3.1's scaling of rotary frequencies (`rope_type: llama3` in a Hugging Face config).

    Wavelengths longer than original_max_position_embeddings / low_freq_factor are stretched by `factor`, those shorter
    than original_max_position_embeddings / high_freq_factor are kept, and the ones between are blended.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope_scaling: factor={self.factor} must be 1 or more, and low_freq_factor={self.low_freq_factor} "
                f"positive and below high_freq_factor={self.high_freq_factor}"
            )
        if self.original_max_position_embeddings < 1:
            raise ConfigError("rope_scaling: original_max_position_embeddings must be 1 or more")


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """theta^(-2i/head_dim) for i in 0 .. head_dim/2 - 1, scaled; `[head_dim / 2]`, fp32.

    Source of the scaled form: transformers' modeling_rope_utils.py, `_compute_llama3_parameters`.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)
