"""The methods of merging, each a pure function of fp32 tensors of one shape (whole tensors, or blocks of them).

Properties of a whole tensor (an angle, a threshold, a mask) are arguments, computed by `moments`, `MagnitudeCounts` and
`dare_mask`, so no method needs a whole tensor in memory. If a method is linear in the tensors, with weights that are
known in advance, its function here returns these weights as fractions, and `merging/exact` computes the sum. The others
compute in fp32, in the order of the models, and the caller rounds the result once to its dtype.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

# Above this |cosine| the sine of the angle is lost in rounding, so the interpolation is linear (Shoemake 1985, section
# 3.3).
NEARLY_PARALLEL = 0.9995
# Elements that share one seed of DARE's mask. Another number gives another mask.
MASK_CHUNK = 1 << 16
# The number of values of 16 bits, half of an fp32 number.
HALF = 1 << 16


def linear(tensors: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None) -> Tensor:
    """`w_0 x_0 + w_1 x_1 + ...`, each operation rounded to fp32: for SLERP, whose weights are not fractions.

    Args:
        out: memory for the result; must not be one of `tensors`.
    """
    total = torch.mul(tensors[0], weights[0], out=out)
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor * weight)
    return total


def task_arithmetic_weights(weights: Sequence[Fraction]) -> list[Fraction]:
    """`base + sum_i w_i (x_i - base)` (arXiv 2212.04089) as linear weights of [base, x_1, x_2, ...]."""
    return [1 - sum(weights, start=Fraction(0)), *weights]


def interpolation_weights(a: Fraction, b: Fraction) -> list[Fraction]:
    """`W(a, b) = base + a (MT - base) + b (RL - MT)` (arXiv 2603.17074, section 7) as weights of [base, MT, RL]."""
    return [1 - a, a - b, b]


def slerp_weights(t: float, dot: float, square_a: float, square_b: float) -> list[float]:
    """Spherical interpolation of flattened tensors (Shoemake 1985): the weights of [a, b] at fraction `t` of the arc.

    The interpolation is linear if the tensors are nearly parallel or opposite, or one is zero.

    Args:
        dot, square_a, square_b: the scalar products a.b, a.a and b.b over the whole tensor (`moments`).
    """
    lengths = math.sqrt(square_a * square_b)
    cosine = dot / lengths if lengths else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return [1.0 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def moments(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """a.b, a.a and b.b of a block. `slerp_weights` takes their sums over the blocks of a tensor."""
    flat_a, flat_b = a.flatten(), b.flatten()
    return (
        float(torch.dot(flat_a, flat_b)),
        float(torch.dot(flat_a, flat_a)),
        float(torch.dot(flat_b, flat_b)),
    )


def ties(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], thresholds: Sequence[float]
) -> Tensor:
    """TIES (arXiv 2306.01708): trim each change to its largest, elect a sign, average the changes that agree with it.

    `base + 1/|A| sum_{i in A} w_i d_i`, where d_i is `x_i - base` with entries below its threshold set to zero, and A
    is the set of models whose `w_i d_i` has the sign of the sum of all. With every weight lambda this is the paper's
    `base + lambda * mean`.

    Args:
        thresholds: the smallest magnitude that is kept, for each model (`MagnitudeCounts`).
    """
    changes = []
    for tensor, weight, threshold in zip(tensors, weights, thresholds, strict=True):
        change = tensor - base
        # A product rather than a selection, so that a NaN is not trimmed away.
        changes.append(change * (change.abs() >= threshold) * weight)
    elected = torch.sign(sum(changes[1:], start=changes[0]))
    total, agreeing = torch.zeros_like(base), torch.zeros_like(base)
    for change in changes:
        agrees = torch.sign(change) == elected
        total += change * agrees
        agreeing += agrees & (change != 0)
    return base + total / agreeing.clamp(min=1.0)


def dare(
    base: Tensor,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    masks: Sequence[Tensor],
    *,
    density: float,
) -> Tensor:
    """DARE (arXiv 2311.03099) with task arithmetic: `base + sum_i w_i mask_i (x_i - base) / density`.

    Args:
        masks: 1 where a change is kept, 0 where it is dropped (`dare_mask`).
    """
    total = base.clone()
    for tensor, weight, mask in zip(tensors, weights, masks, strict=True):
        total += (tensor - base) * mask * (weight / density)
    return total


def dare_mask(seed: int, name: str, model: int, *, first: int, count: int, density: float) -> Tensor:
    """Which of elements `first` .. `first + count` of a flattened tensor DARE keeps: 1 with probability `density`.

    Every `MASK_CHUNK` elements have their own seed, made of (seed, tensor name, model, chunk). So the mask does not
    depend on how a tensor is cut into blocks or on the order of the tensors.

    Args:
        model: the position of the model among those that are merged into the base, from 0.
    """
    chunks = []
    for chunk in range(first // MASK_CHUNK, -(-(first + count) // MASK_CHUNK)):
        digest = hashlib.sha256(f"{seed}|{name}|{model}|{chunk}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        chunks.append(torch.rand(MASK_CHUNK, generator=generator) < density)
    start = first % MASK_CHUNK
    return torch.cat(chunks)[start : start + count].float()


class MagnitudeCounts:
    """The exact k-th largest magnitude of a tensor that is read block by block, in two passes.

    Non-negative floats have the same order as their bits. The first pass counts the upper halves of the bits and
    finds the upper half of the k-th largest magnitude. The second pass counts the lower halves of the numbers with
    that upper half.

    Args:
        keep: k.
    """

    def __init__(self, keep: int) -> None:
        self._left = keep
        self._upper: int | None = None

    def count(self, values: Tensor) -> Tensor:
        """Counts of a block in the current pass, `[65536]`."""
        bits = values.abs().flatten().view(torch.int32)
        if self._upper is None:
            return torch.bincount(bits >> 16, minlength=HALF)
        return torch.bincount((bits & (HALF - 1))[bits >> 16 == self._upper], minlength=HALF)

    def finish(self, counts: Tensor) -> float | None:
        """End a pass, with the counts of all blocks.

        Returns None after the first pass and the magnitude after the second.
        """
        # How many numbers are in a bin or in a higher one. The bin of the k-th largest is the highest that reaches k.
        reached = counts.flip(0).cumsum(0).flip(0)
        found = int((reached >= self._left).nonzero().max())
        if self._upper is None:
            self._left -= int(reached[found] - counts[found])
            self._upper = found
            return None
        bits = torch.tensor([self._upper << 16 | found], dtype=torch.int32)
        return float(bits.view(torch.float32))
