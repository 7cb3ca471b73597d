"""Finds the elements whose terms have exponents far apart, by comparing the terms' stored bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_prism.merging.exact.workspace import Workspace

# If more than this share of a block is flagged, elements that were flagged only because of a zero are unflagged. A zero
# has the smallest exponent of all, but adds nothing to a sum.
MAX_FLAGGED_SHARE = 0.02


class Exponents:
    """The distances between the magnitudes of each element's terms, measured on their stored bits.

    Args:
        bits: the terms, read as signed integers.

    Attributes:
        smallest, largest: the extreme magnitudes in the block.
    """

    def __init__(self, bits: Sequence[Tensor], space: Workspace) -> None:
        self._bits, self._magnitude, self._space = bits, torch.iinfo(bits[0].dtype).max, space
        low, distance, other = space.integers(len(bits[0]), bits[0].dtype)
        torch.bitwise_and(bits[0], self._magnitude, out=low)
        ends = [torch.aminmax(low)]
        if len(bits) == 2:
            torch.bitwise_and(bits[1], self._magnitude, out=other)
            ends.append(torch.aminmax(other))
            torch.sub(low, other, out=distance).abs_()
            self._lowest: Sequence[Tensor] = (low, other)
        else:
            high = distance.copy_(low)
            for each in bits[1:]:
                torch.bitwise_and(each, self._magnitude, out=other)
                ends.append(torch.aminmax(other))
                torch.maximum(high, other, out=high)
                torch.minimum(low, other, out=low)
            torch.sub(high, low, out=distance)
            self._lowest = (low,)
        self._distance = distance.numpy()
        self.smallest = min(int(each.min) for each in ends)
        self.largest = max(int(each.max) for each in ends)

    def far_apart(self, max_distance: int, min_magnitude: int) -> Any:
        """Indices of the elements with magnitudes more than `max_distance` apart, or with one below `min_magnitude`."""
        if self.smallest >= min_magnitude and self.largest - self.smallest <= max_distance:
            return np.empty(0, dtype=np.int64)
        flags, more = self._space.flags(len(self._distance))
        np.greater(self._distance, max_distance, out=flags)
        if self.smallest < min_magnitude:
            for each in self._lowest:
                flags |= np.less(each.numpy(), min_magnitude, out=more)
        found = _flagged(flags)
        if len(found) <= MAX_FLAGGED_SHARE * len(flags):
            return found
        magnitudes = np.stack([each.numpy()[found] & self._magnitude for each in self._bits])
        low = np.where(magnitudes == 0, self._magnitude, magnitudes).min(0)
        return found[(magnitudes.max(0).astype(np.int64) - low > max_distance) | (low < min_magnitude)]


def _flagged(flags: Any) -> Any:
    """The indices of the flags that are set. They are few, so eight flags are tested at a time."""
    whole = len(flags) // 8 * 8
    words = np.flatnonzero(flags[:whole].view(np.uint64) != 0)
    rows, columns = np.nonzero(flags[:whole].reshape(-1, 8)[words])
    return np.concatenate([words[rows] * 8 + columns, whole + np.flatnonzero(flags[whole:])])
