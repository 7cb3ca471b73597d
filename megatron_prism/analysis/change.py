"""How much tensors changed, as sums that add up over blocks, tensors and layers: pure functions for a notebook, too.

Every number of `analyze weights` is a quotient of these sums. A relative change that is exactly at a threshold
(frequent in bf16, where 100 and 101 are neighbours) is never counted as below it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The paper's thresholds of the relative change of an element (Table 22: 0.1 to 10 %); its main one is 1 %.
THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
MAIN_THRESHOLD = 0.01
# Mukherjee et al., arXiv 2505.11711: in bf16, an element that changed by at most this much counts as unchanged.
ABSOLUTE = 1e-5
BF16 = torch.bfloat16
# Elements computed at a time: a few fp32 copies of so many fit a core's second-level cache.
CHUNK = 1 << 15
# Squares in fp32 that are summed in fp32: the sum is right to about 1e-7.
SUMMED = 1 << 12
TINY = 1e-20


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
        rounded: elements whose change can be compared with bf16: all, if the other model is stored more finely than in
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
    measured = [_Pair(base, other) for other in others]
    pieces = [tensor.reshape(-1).split(CHUNK) for tensor in (base, *others)]
    precisions = {each.precision for each in measured}
    scratch = {precision: _Base(precision) for precision in precisions}
    # Weights that are not finite are the caller's to refuse. 0 / 0 is NaN, and c / 0 infinite: not below a threshold.
    with np.errstate(all="ignore"):
        for piece, *changed in zip(*pieces, strict=True):
            for each in scratch.values():
                each.load(piece)
            for pair, other in zip(measured, changed, strict=True):
                pair.add(scratch[pair.precision], other)
    return [pair.result() for pair in measured]


class _Base:
    """A chunk of the base in the precision of the arithmetic, and what all comparisons with it need."""

    def __init__(self, precision: Any) -> None:
        self._values, self._sizes = np.empty(CHUNK, precision), np.empty(CHUNK, precision)
        self._powers = np.empty(CHUNK, np.float32)

    def load(self, piece: Tensor) -> None:
        count = piece.numel()
        self.piece, self.values, self.sizes = piece, self._values[:count], self._sizes[:count]
        torch.from_numpy(self.values).copy_(piece)
        np.abs(self.values, out=self.sizes)
        self.squares = _sum_of_squares(self.values)
        self.zeros = int(np.count_nonzero(self.sizes == 0)) if self.sizes.min() == 0 else 0
        self._floors: dict[torch.dtype, float] = {}

    def floor_squares(self, dtype: torch.dtype) -> float:
        """Sum of s^2 / 12 over the elements, s being the spacing of `dtype` at each.

        In [2^e, 2^(e+1)), neighbours are eps 2^e apart, and below the smallest normal number as far as just above it.
        """
        if dtype not in self._floors:
            limits = torch.finfo(dtype)
            powers = self._powers[: len(self.values)]
            # The bits of the exponent alone are the number 2^e.
            bits = self.values.astype(np.float32, copy=False).view(np.uint32)
            np.bitwise_and(bits, np.uint32(0x7F800000), out=powers.view(np.uint32))
            np.maximum(powers, np.float32(limits.smallest_normal), out=powers)
            self._floors[dtype] = _sum_of_squares(powers) * limits.eps**2 / 12
        return self._floors[dtype]


class _Pair:
    """The sums of one other model, chunk by chunk.

    Two numbers of at most 11 significant bits (bf16, fp16) are compared in fp32: their difference is exact wherever a
    threshold is near, and a quotient of such numbers differs from a threshold by more than fp32's rounding, unless it
    is equal to it. fp32 weights are compared in fp64.
    """

    def __init__(self, base: Tensor, other: Tensor) -> None:
        dtypes = (base.dtype, other.dtype)
        self.precision: Any = np.float64 if torch.float32 in dtypes else np.float32
        self._coarser = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        self._both_bf16 = all(dtype is BF16 for dtype in dtypes)
        # Rounding to bf16 can hide a change only if the changed model has more digits.
        self._can_vanish = torch.finfo(other.dtype).eps < torch.finfo(BF16).eps
        self._difference, self._relative = np.empty(CHUNK, self.precision), np.empty(CHUNK, self.precision)
        self._mask = np.empty(CHUNK, np.bool_)
        # For each threshold, then for equality and the absolute rule: how often each place of a chunk has met it.
        self._met = np.zeros((len(THRESHOLDS) + 2, CHUNK), np.uint8)
        self._limits = [self.precision(threshold) for threshold in THRESHOLDS]
        self._counts = np.zeros(len(THRESHOLDS) + 2, np.int64)
        self._chunks = 0
        self._sums: defaultdict[str, float] = defaultdict(float)

    def add(self, base: _Base, other: Tensor) -> None:
        """Add a chunk."""
        count = other.numel()
        difference, relative = self._difference[:count], self._relative[:count]
        torch.from_numpy(difference).copy_(other)
        np.subtract(difference, base.values, out=difference)
        squares = _sum_of_squares(difference)
        if not math.isfinite(squares):
            # Finite bf16 numbers may be further apart than fp32 can say. Others stay NaN and infinite.
            apart = (other.double() - base.piece.double()).numpy()
            squares = float(np.dot(apart, apart))
        np.abs(difference, out=difference)
        np.divide(difference, base.sizes, out=relative)
        for index, limit in enumerate(self._limits):
            self._count(index, np.less, relative, limit)
        self._count(-2, np.equal, difference, self.precision(0))
        # The values as bf16 shows them.
        seen = difference
        if not self._both_bf16:
            seen = (other.to(BF16).double() - base.piece.to(BF16).double()).abs_().numpy()
        self._count(-1, np.less_equal, seen, ABSOLUTE)
        self._chunks += 1
        if self._chunks == np.iinfo(np.uint8).max:
            self._collect()
        sums = self._sums
        sums["elements"] += count
        sums["base_squares"] += base.squares
        sums["change_squares"] += squares
        sums["floor_squares"] += base.floor_squares(self._coarser)
        if base.zeros:
            kept = int(np.count_nonzero((base.sizes == 0) & (difference == 0)))
            sums["zeros_kept"] += kept
            sums["zeros_changed"] += base.zeros - kept
        if self._can_vanish:
            hidden = np.where(seen == 0, difference, 0)
            sums["rounded"] += count
            sums["rounded_changed"] += int(np.count_nonzero(difference))
            sums["vanished"] += int(np.count_nonzero(hidden))
            sums["rounded_squares"] += squares
            sums["vanished_squares"] += _sum_of_squares(hidden)

    def result(self) -> Change:
        """The sums of all chunks."""
        self._collect()
        *below, equal, absolute = self._counts.tolist()
        # Counts are whole numbers, and fp64 holds them exactly.
        sums: dict[str, Any] = {
            name: value if name.endswith("squares") else int(value) for name, value in self._sums.items()
        }
        return Change(**sums, below=tuple(below), equal=equal, absolute=absolute)

    def _count(self, index: int, compare: Any, values: Any, limit: Any) -> None:
        """Counting each mask at once would take longer than making it; bytes are added up and counted rarely."""
        mask = self._mask[: len(values)]
        compare(values, limit, out=mask)
        met = self._met[index, : len(values)]
        np.add(met, mask.view(np.uint8), out=met)

    def _collect(self) -> None:
        self._counts += self._met.sum(axis=1, dtype=np.int64)
        self._met[:] = 0
        self._chunks = 0


def _sum_of_squares(values: Any) -> float:
    """In fp64; the squares of fp32 numbers are summed in fp32, but only a few at a time."""
    if values.dtype == np.float64:
        return float(np.dot(values, values))
    whole = len(values) // SUMMED * SUMMED
    rows, rest = values[:whole].reshape(-1, SUMMED), values[whole:]
    found = float(np.vecdot(rows, rows).sum(dtype=np.float64)) + float(np.dot(rest, rest))
    # Squares that are too large or too small for fp32; NaN is neither.
    return found if TINY < found < math.inf else _sum_of_squares(values.astype(np.float64))
