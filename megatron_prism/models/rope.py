"""Rotary frequencies: unscaled, or stretched for long contexts (llama3, YaRN, linear interpolation, dynamic NTK).

Megatron-Core 0.16.1 has the llama3 form with three of its four numbers fixed (rotary_pos_embedding.py:110), and YaRN
only for multi-latent attention. So the frequencies are computed here and passed to Megatron.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import LARGEST_COUNT, one_of

if TYPE_CHECKING:
    from torch import Tensor

# The numbers that a config must have, for each type.
NEEDED = {
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "linear": ("factor",),
    "dynamic": ("factor",),
}
# The numbers that a config may omit, with the defaults of transformers.
OPTIONAL: dict[str, dict[str, Any]] = {
    "llama3": {},
    "yarn": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": None,
        "mscale": None,
        "mscale_all_dim": None,
        "truncate": True,
    },
    "linear": {},
    "dynamic": {},
}

POSITIVE = (
    *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
    *("attention_factor", "mscale", "mscale_all_dim"),
)


@dataclass
class RopeScaling:
    """How rotary frequencies are stretched. The fields are the keys of `rope_parameters` in a Hugging Face config.

    `NEEDED` and `OPTIONAL` list the numbers of each `rope_type`; all others must be None.

    - llama3 (LLaMA 3.1): wavelengths longer than original_max_position_embeddings / low_freq_factor are stretched by
      `factor`, those shorter than original_max_position_embeddings / high_freq_factor are kept, and the ones between
      are blended.
    - yarn (arXiv 2309.00071): frequencies that turn fewer than `beta_slow` times over the original length are
      stretched, those that turn more than `beta_fast` times are kept, with a ramp over the dimensions between (its ends
      rounded outwards with `truncate`). Cos and sin are multiplied by `attention_scaling`.
    - linear (position interpolation, arXiv 2306.15595): all frequencies are stretched.
    - dynamic (NTK-aware): in transformers all are stretched while a text is longer than max_position_embeddings, and
      unscaled otherwise. No text is longer here, so they are unscaled; the setting is kept for an export.
    """

    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    rope_type: str = "llama3"
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None

    def __post_init__(self) -> None:
        one_of(self.rope_type, NEEDED, "rope_scaling: rope_type")
        needed, optional = NEEDED[self.rope_type], OPTIONAL[self.rope_type]
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in needed and value is None:
                raise ConfigError(
                    f"rope_scaling: {each.name} is missing; rope_type={self.rope_type} needs it"
                )
            if each.name in optional and value is None:
                setattr(self, each.name, optional[each.name])
            if each.name not in (*needed, *optional, "rope_type") and value is not None:
                raise ConfigError(
                    f"rope_scaling: {each.name}={value} is not used by rope_type={self.rope_type}; remove it"
                )
        self._check_ranges()

    def _check_ranges(self) -> None:
        # This form of the comparison also refuses NaN.
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and not 0 < low < high <= LARGEST_COUNT:
            raise ConfigError(
                f"rope_scaling: low_freq_factor={low} must be positive and below high_freq_factor={high}, which must "
                f"be at most {LARGEST_COUNT}"
            )
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value <= LARGEST_COUNT:
                raise ConfigError(
                    f"rope_scaling: {name}={value} must be greater than zero and at most {LARGEST_COUNT}"
                )

    @property
    def attention_scaling(self) -> float:
        """The factor of cos and sin; attention scores are multiplied by its square.

        Source: transformers' modeling_rope_utils.py, `_compute_yarn_parameters`; as there, mscale is used only
        together with mscale_all_dim.
        """
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return _temperature(self.factor, self.mscale) / _temperature(self.factor, self.mscale_all_dim)
        return _temperature(self.factor, 1.0)

    def numbers(self) -> dict[str, Any]:
        """The numbers that a config must have: the required ones, and optional ones that are not the default."""
        optional = OPTIONAL[self.rope_type]
        found = {name: getattr(self, name) for name in (*NEEDED[self.rope_type], *optional)}
        return {
            name: value for name, value in found.items() if name not in optional or value != optional[name]
        }


def _temperature(factor: float, mscale: float) -> float:
    if factor <= 1:
        return 1.0
    return 0.1 * mscale * math.log(factor) + 1.0


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """theta^(-2i/head_dim) for i in 0 .. head_dim/2 - 1, scaled; `[head_dim / 2]`, fp32.

    Source of the scaled forms: transformers' modeling_rope_utils.py, `_compute_llama3_parameters`,
    `_compute_yarn_parameters`, `_compute_linear_scaling_rope_parameters`.
    """
    import torch

    periods = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    frequencies = 1.0 / periods
    if scaling is None or scaling.rope_type == "dynamic":
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    if scaling.rope_type == "yarn":
        # The same order of operations as in transformers, so that no bit differs.
        kept = 1 - _yarn_ramp(head_dim, theta, scaling)
        return 1.0 / (scaling.factor * periods) * (1 - kept) + frequencies * kept
    original, low, high = _values(
        scaling, "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"
    )
    turns = original * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _values(scaling: RopeScaling, *names: str) -> list[float]:
    return [float(getattr(scaling, name)) for name in names]


def _yarn_ramp(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """How much each frequency is stretched, from 0 (unchanged) to 1 (by the whole factor); `[head_dim / 2]`."""
    import torch

    original, fast, slow = _values(scaling, "original_max_position_embeddings", "beta_fast", "beta_slow")

    def index(turns: float) -> float:
        """The position in the head of the frequency with this number of turns over the original length."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = index(fast), index(slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    # This avoids a division by zero. The number is that of transformers.
    last += 0.001 if first == last else 0
    return ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
