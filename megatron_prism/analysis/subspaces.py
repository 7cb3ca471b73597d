"""The principal angles between the leading directions of two updates, and what chance would give."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_cosines(first: Tensor, second: Tensor) -> Tensor:
    """The cosines of the principal angles between two subspaces, largest first.

    (Björck and Golub, Mathematics of Computation 27, 1973.)

    Args:
        first: [dimensions, k] orthonormal columns that span a subspace, in fp64.
        second: the same of another one.
    """
    return torch.linalg.svdvals(first.T @ second).clamp(max=1.0)


def overlap(cosines: Tensor) -> float:
    """The mean of the squared cosines: 1 for equal subspaces of equal dimension, 0 for orthogonal ones."""
    return float(cosines.square().mean())


def chance_overlap(directions: int, dimensions: int) -> float:
    """The expected overlap of a random subspace of `directions` dimensions with any other: k / d, exactly.

    Each direction of one has k / d of its squared length in the other on average.
    """
    return directions / dimensions
