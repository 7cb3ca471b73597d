"""The number formats of quantized checkpoints: their names in ModelOpt, and how to read the tensors it writes.

The readers are written from the formats' definitions and not from ModelOpt's code, so that they can find its errors.
Each reader also returns the largest allowed error of each value. Where possible, this bound is computed from the
original weight. A wrong stored scale is therefore found even if it is consistent with the stored values.

Sources: FP8 E4M3, arxiv.org/abs/2209.05433; MXFP8 and E2M1, the Open Compute Project's "Microscaling Formats (MX)"
1.0; the two scales of NVFP4, arxiv.org/abs/2509.25149.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.platform.hardware import has_gpu

# 4 exponent and 3 mantissa bits: half a step is 2^-4 of the value; below the smallest normal number it is 2^-10.
E4M3_MAX, E4M3_RELATIVE, E4M3_ABSOLUTE = 448.0, 2.0**-4, 2.0**-10
INT8_MAX = 127.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = E2M1[-1]
# Weight divided by scale may be rounded to bf16 (half a step: 2^-9) before it is rounded to the format.
TWICE_ROUNDED = 2.0**-8
SLACK = 1.01

Parts = Mapping[str, Tensor]
Reader = Callable[[Parts, Tensor], tuple[Tensor, Tensor]]


def read_fp8(parts: Parts, weight: Tensor) -> tuple[Tensor, Tensor]:
    """One scale for the whole matrix."""
    smallest = weight.abs().max() / E4M3_MAX * E4M3_ABSOLUTE
    allowed = weight.abs() * (E4M3_RELATIVE + TWICE_ROUNDED) + smallest
    return parts["weight"].float() * parts["weight_scale"].float(), allowed


def read_int8(parts: Parts, weight: Tensor) -> tuple[Tensor, Tensor]:
    """One scale `[rows]` for each row (output)."""
    step = weight.abs().amax(-1, keepdim=True) / INT8_MAX
    return parts["weight"].float() * parts["weight_scale"].float()[:, None], (step / 2 * SLACK).expand_as(
        weight
    )


def read_mxfp8(parts: Parts, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A power of two `[rows, columns / 32]` for each 32 columns, stored as its exponent plus 127."""
    scale = torch.exp2(parts["weight_scale"].float() - 127.0)
    # The power of two above the exact scale is up to twice as large.
    smallest = _blocks(weight, 32) / E4M3_MAX * 2 * E4M3_ABSOLUTE
    allowed = weight.abs() * (E4M3_RELATIVE + TWICE_ROUNDED) + _spread(smallest, 32)
    return parts["weight"].float() * _spread(scale, 32), allowed


def read_nvfp4(parts: Parts, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two values in a byte, the first in its low half; an E4M3 scale for each 16 columns, times one for the matrix."""
    packed = parts["weight"]
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).long()
    values = torch.tensor(E2M1)[codes & 7] * torch.where(codes > 7, -1.0, 1.0)
    whole = parts["weight_scale_2"].float()
    scale = parts["weight_scale"].float() * whole
    # The widest gap of E2M1 is 2, between 4 and 6; the block's scale itself is rounded to E4M3.
    step = _blocks(weight, 16) / E2M1_MAX * (1 + E4M3_RELATIVE) + whole * E4M3_ABSOLUTE
    return values * _spread(scale, 16), _spread(step, 16) * SLACK


def _blocks(weight: Tensor, size: int) -> Tensor:
    """Largest magnitude `[rows, columns / size]` of each block."""
    return weight.abs().unflatten(-1, (-1, size)).amax(-1)


def _spread(scale: Tensor, size: int) -> Tensor:
    return scale.repeat_interleave(size, dim=-1)


@dataclass(frozen=True)
class Scheme:
    """One way to quantize.

    Attributes:
        preset: ModelOpt's name of the configuration.
        read: (stored parts by suffix, original weight in fp32) -> (the values they represent, the allowed error of
            each).
        companions: the tensors stored with a quantized weight, by suffix.
        input_max: the largest number to which inputs are scaled; 0 if the range is measured for each input at run time.
        by_row: every row has a scale, so a row of zeros cannot be represented. Otherwise the matrix or a block has one.
        block: number of columns that share a scale; 1 if scales do not depend on columns.
        needs_gpu: ModelOpt has only CUDA kernels for it.
    """

    name: str
    preset: str
    read: Reader
    companions: tuple[str, ...]
    input_max: float = 0.0
    by_row: bool = False
    block: int = 1
    needs_gpu: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether the range of activations is measured and stored, rather than found for each input at run time."""
        return self.input_max > 0

    def why_not(self, weight: Tensor) -> str | None:
        """Why this matrix `[rows, columns]` cannot be stored in this format, or None."""
        if weight.shape[-1] % self.block:
            return f"{weight.shape[-1]} columns are not a multiple of {self.block}"
        if self.by_row and not bool((weight != 0).any(-1).all()):
            return "a row is all zeros"
        return None if bool((weight != 0).any()) else "all zeros"


SCALED = ("weight_scale", "input_scale")
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp8", "FP8_DEFAULT_CFG", read_fp8, SCALED, E4M3_MAX),
        Scheme("int8", "INT8_DEFAULT_CFG", read_int8, SCALED, INT8_MAX, by_row=True),
        Scheme("mxfp8", "MXFP8_DEFAULT_CFG", read_mxfp8, SCALED[:1], block=32, needs_gpu=True),
        Scheme(
            "nvfp4",
            "NVFP4_DEFAULT_CFG",
            read_nvfp4,
            (*SCALED, "weight_scale_2"),
            # The scale of a block of inputs is itself an E4M3 number.
            E2M1_MAX * E4M3_MAX,
            block=16,
            needs_gpu=True,
        ),
    )
}


def scheme_named(name: str) -> Scheme:
    """The scheme with this name.

    Raises:
        ConfigError: for an unknown name, or a scheme that this machine cannot compute.
    """
    if name not in SCHEMES:
        raise ConfigError(f"scheme='{name}': unknown{suggest(name, SCHEMES)}")
    scheme = SCHEMES[name]
    if scheme.needs_gpu and not has_gpu():
        others = ", ".join(key for key, each in SCHEMES.items() if not each.needs_gpu)
        raise ConfigError(
            f"scheme='{name}': ModelOpt needs a CUDA device for this scheme; without one, use {others}"
        )
    return scheme
