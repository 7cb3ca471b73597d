"""What the spectrum of an update would be if its elements were independent noise: the Marchenko-Pastur law.

For an [m, n] matrix of independent elements of variance 1, n >= m, the squared singular values divided by n have, for
large matrices, a density on [(1 - r)^2, (1 + r)^2], where r = sqrt(m / n). With x(t) = 1 + r^2 + 2 r cos(t) and
0 <= t <= pi it is (2 / pi) sin(t)^2 / x(t) dt. (Marchenko and Pastur 1967.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

POINTS = 1 << 14


@dataclass(frozen=True)
class RandomSpectrum:
    """The limit for a matrix of this shape, whose elements have variance 1.

    Attributes:
        values: [grid] singular values divided by the root of the longer side, largest first.
        weights: [grid] the share of the singular values that each stands for; they sum to 1.
        size: the number of singular values.
    """

    values: Tensor
    weights: Tensor
    size: int

    def share(self, top: int) -> float:
        """The share of the energy in the `top` leading directions."""
        squares = self.values.square() * self.weights
        return float(_interpolate(min(1.0, top / self.size), self.weights.cumsum(0), squares.cumsum(0)))

    @property
    def stable_rank(self) -> float:
        """Of the limit, whose largest value is that at the edge of the law; no matrix has less than 1."""
        edge = float(self.values[0])
        return max(1.0, self.size * float((self.values.square() * self.weights).sum()) / edge**2)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of s / sum(s); no matrix has less than 1."""
        mean = float((self.values * self.weights).sum())
        relative = self.values / mean
        entropy = -float((self.weights * relative * relative.clamp(min=1e-300).log()).sum())
        return max(1.0, self.size * math.exp(entropy))

    def decay(self, top: int) -> list[float]:
        """The leading singular values relative to the largest one: quantiles of the law."""
        places = [(index + 0.5) / self.size for index in range(min(top, self.size))]
        found = [_interpolate(place, self.weights.cumsum(0), self.values) for place in places]
        return [each / found[0] for each in found]


@lru_cache(maxsize=64)
def random_spectrum(rows: int, columns: int) -> RandomSpectrum:
    """The limit for this shape."""
    size, longer = sorted((rows, columns))
    ratio = math.sqrt(size / longer)
    angles = (torch.arange(POINTS, dtype=torch.float64) + 0.5) * math.pi / POINTS
    squares = 1 + ratio**2 + 2 * ratio * angles.cos()
    # For a square matrix, x(pi) is 0, and so is the sine's square; their quotient stays finite.
    weights = angles.sin().square() / squares.clamp(min=1e-300)
    return RandomSpectrum(squares.clamp(min=0).sqrt(), weights / weights.sum(), size)


def _interpolate(place: float, at: Tensor, values: Tensor) -> float:
    """`values` at `place`, linearly between the points of the increasing `at`; 0 stands before the first."""
    index = min(int(torch.searchsorted(at, place)), len(at) - 1)
    if index == 0:
        return float(values[0])
    below, above = float(at[index - 1]), float(at[index])
    part = (place - below) / (above - below)
    return float(values[index - 1]) + min(1.0, part) * float(values[index] - values[index - 1])
