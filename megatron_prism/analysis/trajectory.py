"""Which elements a training has moved by each of its steps, and how such sets of elements overlap.

Pure functions over tensors, for a notebook, too. The active set is the complement of the paper's update sparsity
(section 10.4): elements with |w' - w| >= 1 % of |w|. The set of all elements that differ at all is counted beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_prism.analysis.change import MAIN_THRESHOLD, Change, changes

# Elements computed at a time: a few fp64 copies of so many fit a core's cache.
CHUNK = 1 << 15
# Rules by which an element is active: changed by 1 % or more; changed at all.
RELATIVE, EXACT = RULES = ("relative", "exact")
# Pairs of models, by their place among those that are compared with the start.
Pair = tuple[int, int]
# An fp32 number has 8 bits of exponent; zero and the smallest numbers are the first bin.
BINS = 256


@dataclass(frozen=True)
class Movement:
    """What is found in the elements of a start and several later models. `+` joins two sets of elements.

    Attributes:
        changes: of each model from the start.
        both: [rules, pairs] the number of elements that are active in both models of a pair.
        sizes: [bins] the number of elements of the start with each binary exponent.
        active: [rules, models, bins] of these, the active ones.
    """

    changes: tuple[Change, ...]
    both: Tensor
    sizes: Tensor
    active: Tensor

    def __add__(self, other: Movement) -> Movement:
        return Movement(
            tuple(mine + theirs for mine, theirs in zip(self.changes, other.changes, strict=True)),
            self.both + other.both,
            self.sizes + other.sizes,
            self.active + other.active,
        )

    @property
    def finite(self) -> bool:
        return all(math.isfinite(each.base_squares + each.change_squares) for each in self.changes)

    def overlap(self, pair: Pair, number: int, rule: str) -> Overlap:
        """The overlap of the active sets of a pair of models; `number` is its place in `both`."""
        sets = self.active[RULES.index(rule)].double()
        first, second = sets[pair[0]], sets[pair[1]]
        sizes = self.sizes.double()
        return Overlap(
            first=int(first.sum()),
            second=int(second.sum()),
            both=int(self.both[RULES.index(rule), number]),
            chance=float(first.sum() * second.sum() / sizes.sum()),
            size_chance=float((first * second / sizes.clamp(min=1)).sum()),
        )


def active(base: Tensor, other: Tensor, threshold: float = MAIN_THRESHOLD) -> Tensor:
    """Where |other - base| >= threshold |base| and they differ; a zero that stayed zero is not active, in fp64."""
    old = base.double()
    difference = other.double() - old
    # 0 / 0 is NaN and c / 0 infinite: neither is below a threshold.
    return ~(difference.abs() / old.abs() < threshold) & (difference != 0)


def movement(base: Tensor, others: Sequence[Tensor], pairs: Sequence[Pair]) -> Movement:
    """The changes of each of `others`, and the overlap of the active sets of these pairs of them.

    Args:
        base: any shape, in the dtype in which it is stored.
        others: the same tensor of the other models.
    """
    both = np.zeros((len(RULES), len(pairs)), np.int64)
    # For each model and exponent, elements that did not change, changed by less than 1 %, and by more.
    counts = np.zeros((len(others), BINS * 3), np.int64)
    # As in change.py: fp32 is enough to compare two numbers of at most 11 significant bits with a threshold.
    precision: Any = np.float64 if torch.float32 in [each.dtype for each in (base, *others)] else np.float32
    sets = np.empty((len(RULES), len(others), CHUNK), np.bool_)
    with np.errstate(all="ignore"):
        for piece, *changed in zip(*(each.reshape(-1).split(CHUNK) for each in (base, *others)), strict=True):
            old = _values(piece, precision)
            sizes = np.abs(old)
            first_bin = ((old.astype(np.float32).view(np.int32) >> 23) & 0xFF).astype(np.int64) * 3
            moved, differ = sets[:, :, : len(old)]
            for model, each in enumerate(changed):
                difference = np.abs(_values(each, precision) - old)
                np.not_equal(difference, 0, out=differ[model])
                np.divide(difference, sizes, out=difference)
                # 0 / 0 is NaN and c / 0 infinite: neither is below a threshold.
                np.less(difference, precision(MAIN_THRESHOLD), out=moved[model])
                np.greater(differ[model], moved[model], out=moved[model])
                place = first_bin + differ[model] + moved[model]
                counts[model] += np.bincount(place, minlength=BINS * 3)
            for number, (first, second) in enumerate(pairs):
                both[0, number] += np.count_nonzero(moved[first] & moved[second])
                both[1, number] += np.count_nonzero(differ[first] & differ[second])
    binned = torch.from_numpy(counts).view(len(others), BINS, 3)
    return Movement(
        tuple(changes(base, others)),
        torch.from_numpy(both),
        binned[0].sum(1),
        torch.stack([binned[..., 2], binned[..., 1] + binned[..., 2]]),
    )


def _values(piece: Tensor, precision: Any) -> Any:
    """A chunk as an array of this precision."""
    found = np.empty(piece.numel(), precision)
    torch.from_numpy(found).copy_(piece)
    return found


def active_share(change: Change, rule: str = RELATIVE) -> float:
    """The share of elements that are active: of those that changed by 1 % or more, or (`EXACT`) at all."""
    if rule == EXACT:
        return 1 - change.equal / change.elements
    return 1 - change.sparsity[MAIN_THRESHOLD]


@dataclass(frozen=True)
class Overlap:
    """Two sets of elements and those in both. `+` joins two sets of elements.

    Attributes:
        first: the size of the first set.
        second: the size of the second set.
        both: the size of their intersection.
        chance: the expected size of the intersection of two independent sets of these sizes: |A| |B| / d.
        size_chance: the same if they are independent only among weights of similar size, that is with one binary
            exponent. A small weight changes by 1 % more easily, so two sets agree on small weights without a reason.
    """

    first: int = 0
    second: int = 0
    both: int = 0
    chance: float = 0.0
    size_chance: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.first + other.first,
            self.second + other.second,
            self.both + other.both,
            self.chance + other.chance,
            self.size_chance + other.size_chance,
        )

    @property
    def jaccard(self) -> float | None:
        """|A and B| / |A or B|; None if both are empty."""
        return _quotient(self.both, self.first + self.second - self.both)

    @property
    def chance_jaccard(self) -> float | None:
        """The Jaccard index if the intersection has the size `chance`; None if both are empty."""
        return _quotient(self.chance, self.first + self.second - self.chance)

    @property
    def size_chance_jaccard(self) -> float | None:
        """The Jaccard index if the intersection has the size `size_chance`; None if both are empty."""
        return _quotient(self.size_chance, self.first + self.second - self.size_chance)

    @property
    def of_first(self) -> float | None:
        """|A and B| / |A|; None if A is empty."""
        return _quotient(self.both, self.first)

    @property
    def of_second(self) -> float | None:
        """|A and B| / |B|; None if B is empty."""
        return _quotient(self.both, self.second)


def _quotient(above: float, below: float) -> float | None:
    return above / below if below else None
