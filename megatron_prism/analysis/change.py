"""How much tensors changed, as sums that add up over blocks, tensors and layers: pure functions for a notebook, too.

Every number of docs/analysis.md is a quotient of these sums. Differences and quotients are computed in fp64, so a
relative change that is exactly at a threshold (frequent in bf16) is never counted as below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from operator import add
from typing import Any

import torch
from torch import Tensor

# The paper's thresholds of the relative change of an element (Table 22: 0.1 to 10 %); its main one is 1 %.
THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
MAIN_THRESHOLD = 0.01
# Mukherjee et al., arXiv 2505.11711: in bf16, an element that changed by at most this much counts as unchanged.
ABSOLUTE = 1e-5
BF16 = torch.bfloat16
# Elements computed at a time: a few fp64 copies of so many fit a core's cache.
CHUNK = 1 << 15


@dataclass(frozen=True)
class Change:
    """Sums over elements of a base and of one other model. `+` joins two sets of elements.

    Attributes:
        elements: their number.
        base_squares: sum of w^2, the base's weights.
        change_squares: sum of (w' - w)^2.
        below: for each of `THRESHOLDS`, elements with |w' - w| < threshold |w|, without the zero weights.
        equal: elements with w' = w, zero weights included.
        zeros_kept: elements with w = 0 and w' = 0. They count as unchanged.
        zeros_changed: elements with w = 0 and another w'. Their relative change is infinite: changed.
        absolute: elements with |w' - w| <= `ABSOLUTE`, both rounded to bf16.
        floor_squares: sum of s^2 / 12, where s is the distance between neighbouring numbers at w in the coarser of the
            two stored dtypes: the expected square of a rounding error.
        rounded: elements whose change could be compared with bf16: all, if both models are stored more finely than in
            bf16, or none.
        rounded_changed: of these, elements with w' != w.
        vanished: of these, elements that become equal when both are rounded to bf16.
        rounded_squares: sum of (w' - w)^2 over `rounded`.
        vanished_squares: sum of (w' - w)^2 over `vanished`.
    """

    elements: int = 0
    base_squares: float = 0.0
    change_squares: float = 0.0
    below: tuple[int, ...] = (0,) * len(THRESHOLDS)
    equal: int = 0
    zeros_kept: int = 0
    zeros_changed: int = 0
    absolute: int = 0
    floor_squares: float = 0.0
    rounded: int = 0
    rounded_changed: int = 0
    vanished: int = 0
    rounded_squares: float = 0.0
    vanished_squares: float = 0.0

    def __add__(self, other: Change) -> Change:
        joined: list[Any] = [
            tuple(map(add, mine, theirs)) if isinstance(mine, tuple) else mine + theirs
            for mine, theirs in zip(astuple(self), astuple(other), strict=True)
        ]
        return Change(*joined)

    @property
    def delta(self) -> float | None:
        """||W' - W||_2 / ||W||_2 (paper, section 10.1); None if every weight of the base is zero."""
        return math.sqrt(self.change_squares / self.base_squares) if self.base_squares else None

    @property
    def floor(self) -> float | None:
        """The delta that is expected from rounding to the stored dtype alone; None as for `delta`."""
        return math.sqrt(self.floor_squares / self.base_squares) if self.base_squares else None

    @property
    def sparsity(self) -> dict[float, float]:
        """Threshold -> the fraction of elements that changed relatively by less; zeros that stayed zero among them."""
        return {
            threshold: (count + self.zeros_kept) / self.elements
            for threshold, count in zip(THRESHOLDS, self.below, strict=True)
        }

    @property
    def vanished_norm(self) -> float | None:
        """The share of the change's norm in elements that bf16 could not show; None if it is not known or 0 / 0."""
        return math.sqrt(self.vanished_squares / self.rounded_squares) if self.rounded_squares else None


def total(changes: Iterable[Change]) -> Change:
    """The sums of several sets of elements together."""
    return sum(changes, start=Change())


def change(base: Tensor, other: Tensor) -> Change:
    """How one tensor changed; shapes are equal, and dtypes are those in which the models are stored."""
    return changes(base, [other])[0]


def changes(base: Tensor, others: Sequence[Tensor]) -> list[Change]:
    """How one tensor changed in each of several models; what depends only on the base is computed once.

    Args:
        base: any shape, in fp32, bf16 or fp16: the dtype decides the floor.
        others: the same tensor of the other models.
    """
    pieces = [tensor.reshape(-1).split(CHUNK) for tensor in (base, *others)]
    found = [Change() for _ in others]
    for piece, *changed in zip(*pieces, strict=True):
        old = piece.double()
        weights = old.abs()
        squares = float(torch.dot(old, old))
        zeros = piece.numel() - int(torch.count_nonzero(old))
        floors = {
            dtype: _floor_squares(piece, dtype) for dtype in {_coarser(piece, each) for each in changed}
        }
        for index, each in enumerate(changed):
            floor = floors[_coarser(piece, each)]
            found[index] += _chunk(piece, each, old=old, weights=weights, zeros=zeros) + Change(
                base_squares=squares, floor_squares=floor
            )
    return found


def _chunk(base: Tensor, other: Tensor, *, old: Tensor, weights: Tensor, zeros: int) -> Change:
    """All sums that depend on `other`. `old` and `weights` are the base's elements and their sizes, in fp64."""
    elements = base.numel()
    difference = other.double().sub_(old)
    squares = float(torch.dot(difference, difference))
    changed = int(torch.count_nonzero(difference))
    difference.abs_()
    # 0 / 0 is NaN and c / 0 infinite: neither is below any threshold.
    relative = difference / weights
    below = tuple(int(torch.count_nonzero(relative < threshold)) for threshold in THRESHOLDS)
    zeros_kept = int(torch.count_nonzero((weights == 0) & (difference == 0))) if zeros else 0
    # The values as bf16 shows them.
    seen = difference
    if base.dtype is not BF16 or other.dtype is not BF16:
        seen = other.to(BF16).double().sub_(base.to(BF16).double()).abs_()
    sums = Change(
        elements=elements,
        change_squares=squares,
        below=below,
        equal=elements - changed,
        zeros_kept=zeros_kept,
        zeros_changed=zeros - zeros_kept,
        absolute=int(torch.count_nonzero(seen <= ABSOLUTE)),
    )
    if not all(torch.finfo(each.dtype).eps < torch.finfo(BF16).eps for each in (base, other)):
        return sums
    hidden = difference.masked_fill_(seen != 0, 0)
    return replace(
        sums,
        rounded=elements,
        rounded_changed=changed,
        vanished=int(torch.count_nonzero(hidden)),
        rounded_squares=squares,
        vanished_squares=float(torch.dot(hidden, hidden)),
    )


def _coarser(base: Tensor, other: Tensor) -> torch.dtype:
    return max(base.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)


def _floor_squares(base: Tensor, dtype: torch.dtype) -> float:
    """Sum of s^2 / 12 over the elements, s being the spacing of `dtype` at each.

    In [2^e, 2^(e+1)), neighbours are eps 2^e apart, and below the smallest normal number as far as just above it.
    """
    limits = torch.finfo(dtype)
    # The bits of the exponent alone are the number 2^e.
    powers = (base.float().view(torch.int32) & 0x7F800000).view(torch.float32).double()
    spacing = powers.clamp_(min=limits.smallest_normal)
    return float(torch.dot(spacing, spacing)) * limits.eps**2 / 12
