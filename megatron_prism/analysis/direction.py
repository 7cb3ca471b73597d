"""Whether two updates point the same way: the cosine between W_A - W_base and W_B - W_base, and that of chance.

Pure functions over tensors, for a notebook, too. All sums are in fp64. (Paper, section 10.4: update-direction cosine.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

# Elements computed at a time: a few fp64 copies of so many fit a core's cache.
CHUNK = 1 << 15


@dataclass(frozen=True)
class Products:
    """Sums over the elements of two updates a and b. `+` joins two sets of elements.

    Attributes:
        elements: their number.
        dot: sum of a b.
        first_squares: sum of a^2.
        second_squares: sum of b^2.
        product_squares: sum of a^2 b^2.
    """

    elements: int = 0
    dot: float = 0.0
    first_squares: float = 0.0
    second_squares: float = 0.0
    product_squares: float = 0.0

    def __add__(self, other: Products) -> Products:
        return Products(
            self.elements + other.elements,
            self.dot + other.dot,
            self.first_squares + other.first_squares,
            self.second_squares + other.second_squares,
            self.product_squares + other.product_squares,
        )

    @property
    def finite(self) -> bool:
        return math.isfinite(self.dot + self.first_squares + self.second_squares)

    @property
    def norms(self) -> float:
        """||a|| ||b||, which is 0 if an update is zero."""
        return math.sqrt(self.first_squares) * math.sqrt(self.second_squares)

    @property
    def cosine(self) -> float | None:
        """a b / (||a|| ||b||), between -1 and 1; None if one of the updates is zero."""
        if not self.norms:
            return None
        return max(-1.0, min(1.0, self.dot / self.norms))

    @property
    def sign_flip_std(self) -> float | None:
        """Standard deviation of the cosine if every element of b had a random sign; None as for `cosine`.

        Its mean is 0. The sizes of the elements stay where they are, so the value respects that few elements changed,
        and that some tensors changed more than others.
        """
        return math.sqrt(self.product_squares) / self.norms if self.norms else None


def products(first: Tensor, second: Tensor) -> Products:
    """The sums of two updates of equal shape, in fp32, bf16, fp16 or fp64."""
    return pair_products(torch.zeros_like(first), [first, second])[0, 1]


def pair_products(base: Tensor, others: Sequence[Tensor]) -> Pairs:
    """The sums of each pair of updates `others[i] - base`, by the two indices.

    Args:
        base: any shape.
        others: the same tensor of two or more other models.
    """
    found = Pairs((pair, Products()) for pair in combinations(range(len(others)), 2))
    for piece, *changed in zip(*(each.reshape(-1).split(CHUNK) for each in (base, *others)), strict=True):
        old = piece.double()
        updates = [each.double().sub_(old) for each in changed]
        squared = [update.square() for update in updates]
        squares = [float(each.sum()) for each in squared]
        for i, j in found:
            found[i, j] += Products(
                piece.numel(),
                float(torch.dot(updates[i], updates[j])),
                squares[i],
                squares[j],
                float(torch.dot(squared[i], squared[j])),
            )
    return found


class Pairs(dict[tuple[int, int], Products]):
    """The sums of several pairs of models. `+` joins two sets of elements."""

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs((pair, mine + other[pair]) for pair, mine in self.items())

    @property
    def finite(self) -> bool:
        return all(each.finite for each in self.values())


def mean_cosine(pieces: Iterable[Products]) -> float | None:
    """The mean of the pieces' cosines, weighted by their elements; those without one are left out; None if all are."""
    known = [(each.elements, each.cosine) for each in pieces]
    weight = sum(elements for elements, cosine in known if cosine is not None)
    if not weight:
        return None
    return math.fsum(elements * cosine for elements, cosine in known if cosine is not None) / weight


def chance_std(elements: int) -> float:
    """Standard deviation of the cosine of two independent random directions in `elements` dimensions; its mean is 0."""
    return 1 / math.sqrt(elements)


def chance_absolute(elements: int) -> float:
    """The expected size |cosine| of two independent random directions: sqrt(2 / (pi d)) for large d.

    Exactly Gamma(d / 2) / (sqrt(pi) Gamma((d + 1) / 2)), from the density (1 - c^2)^((d - 3) / 2) of the cosine c.
    """
    # Beyond this, the two differ relatively by less than 1 / 4d, and the difference of the logarithms loses digits.
    if elements > 10_000:
        return math.sqrt(2 / (math.pi * elements))
    return math.exp(math.lgamma(elements / 2) - math.lgamma((elements + 1) / 2)) / math.sqrt(math.pi)
