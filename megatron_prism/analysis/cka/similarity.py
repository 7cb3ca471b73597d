"""Linear CKA of two representations of the same inputs: the paper's value, an unbiased one, and the value by chance.

A representation is a matrix `[n, d]` with a row for each input. With centred columns, the paper's definition (section
10.2) is

    CKA(X, Y) = ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F) = <K, L> / (||K||_F ||L||_F),   K = XX', L = YY'

The first form needs d x d matrices, the second n x n (Kornblith, Norouzi, Lee, Hinton 2019, section 3). The paper does
not write that the features are centred; CKA without centring is not CKA.

This value is biased: for independent noise it is about sqrt(d1 d2 / ((n + d1)(n + d2))), which is near 1 if the inputs
are fewer than the features. `unbiased_cka` removes the bias, and `chance_cka` says how large it is for given matrices.

Everything is computed in fp64 and does not depend on the scale. A value that is not defined is None; `fault` says why.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from megatron_prism.errors import ConfigError

# Below this the unbiased estimate of HSIC divides by zero.
LEAST_INPUTS = 4


def linear_cka(x: Any, y: Any) -> float | None:
    """CKA of two representations, 0..1.

    Args:
        x: `[n, d1]`, of any dtype.
        y: `[n, d2]`, of the same inputs in the same order.

    Returns:
        None if one of them has a `fault`.

    Raises:
        ConfigError: for other shapes.
    """
    first, second = _pair(x, y)
    if fault(first) or fault(second):
        return None
    first, second = centred(first), centred(second)
    if first.shape[0] <= max(first.shape[1], second.shape[1]):
        return gram_cka(first @ first.T, second @ second.T)
    cross, own, other = second.T @ first, first.T @ first, second.T @ second
    return float(_inner(cross, cross) / (own.norm() * other.norm()))


def unbiased_cka(x: Any, y: Any) -> float | None:
    """CKA from unbiased estimates of HSIC (`unbiased_hsic`): about 0 for independent noise, at most 1, may be negative.

    The quotient of unbiased estimates has a bias of its own, which vanishes with n (Nguyen, Raghu, Kornblith 2021).

    Args:
        x: `[n, d1]`.
        y: `[n, d2]`, of the same inputs in the same order.

    Returns:
        None if one of them has a `fault`, or its estimate of HSIC with itself is not positive.

    Raises:
        ConfigError: for other shapes, or fewer than four inputs.
    """
    first, second = _pair(x, y)
    if fault(first) or fault(second):
        return None
    return gram_unbiased_cka(gram(first), gram(second))


def chance_cka(x: Any, y: Any) -> float | None:
    """The mean of `linear_cka` over all orders of the rows of `y`: what unrelated inputs would give.

    For centred K and L the mean of <K, PLP'> over all permutations P is tr K tr L / (n - 1), so none needs drawing.
    """
    first, second = _pair(x, y)
    if fault(first) or fault(second):
        return None
    return gram_chance(gram(first), gram(second))


def fault(x: Any) -> str | None:
    """Why no similarity with this representation is defined; None if it is."""
    features = _features(x)
    if not bool(features.isfinite().all()):
        return "has values that are not finite"
    if not bool(centred(features).any()):
        return "is the same for every input"
    return None


def centred(x: Any) -> Tensor:
    """The features in fp64 minus their means, divided by the largest of them: squares neither overflow nor vanish.

    A feature that varies only by the rounding of fp64 becomes exactly zero.
    """
    features = _features(x)
    moved = features - features.mean(dim=0)
    rounding = features.shape[0] * torch.finfo(torch.float64).eps * features.abs().amax(dim=0)
    moved = moved.where(moved.abs().amax(dim=0) > rounding, 0.0)
    largest = moved.abs().max()
    return moved / largest if largest > 0 else moved


def gram(x: Any) -> Tensor:
    """`[n, n]`: the products of the centred features of every two inputs, divided by the square of the largest."""
    features = centred(x)
    return features @ features.T


def recentred(part: Tensor) -> Tensor:
    """Gram matrices `[..., m, m]` of a subset of the inputs, centred on the subset."""
    rows = part.mean(dim=-1, keepdim=True)
    return part - rows - rows.mT + rows.mean(dim=-2, keepdim=True)


def gram_cka(first: Tensor, second: Tensor) -> float | None:
    """`linear_cka` from centred Gram matrices; None if one is zero."""
    norms = first.norm() * second.norm()
    return float(_inner(first, second) / norms) if norms > 0 else None


def gram_distance(first: Tensor, second: Tensor) -> float | None:
    """1 - CKA without cancellation: half the squared distance of the two matrices of norm 1.

    For two nearly equal models, 1 - CKA from the rounded CKA would have few digits.
    """
    if not (first.norm() > 0 and second.norm() > 0):
        return None
    return float((first / first.norm() - second / second.norm()).square().sum() / 2)


def gram_unbiased_cka(first: Tensor, second: Tensor) -> float | None:
    """`unbiased_cka` from Gram matrices."""
    own, other = unbiased_hsic(first, first), unbiased_hsic(second, second)
    if own <= 0 or other <= 0:
        return None
    return unbiased_hsic(first, second) / math.sqrt(own * other)


def gram_chance(first: Tensor, second: Tensor) -> float | None:
    """`chance_cka` from centred Gram matrices."""
    norms = first.norm() * second.norm()
    traces = first.trace() * second.trace()
    return float(traces / ((first.shape[0] - 1) * norms)) if norms > 0 else None


def unbiased_hsic(first: Tensor, second: Tensor) -> float:
    """HSIC_1 of Song, Smola, Gretton, Bedo, Borgwardt 2012 (equation 5), for Gram matrices of four or more inputs.

    In the form of Szekely and Rizzo 2014: the mean product of the U-centred matrices.

    Raises:
        ConfigError: for fewer than four inputs.
    """
    n = first.shape[0]
    if n < LEAST_INPUTS:
        raise ConfigError(f"{n} inputs: the unbiased estimate of HSIC needs at least {LEAST_INPUTS}")
    return float(_inner(_u_centred(first), _u_centred(second)) / (n * (n - 3)))


def _u_centred(matrix: Tensor) -> Tensor:
    n = matrix.shape[0]
    hollow = matrix - torch.diag(matrix.diagonal())
    rows = hollow.sum(dim=1, keepdim=True)
    moved = hollow - (rows + rows.T) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return moved - torch.diag(moved.diagonal())


def _pair(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    first, second = _features(x), _features(y)
    if first.shape[0] != second.shape[0]:
        raise ConfigError(
            f"representations of {first.shape[0]} and of {second.shape[0]} inputs cannot be compared; use the same "
            "inputs for both"
        )
    return first, second


def _features(x: Any) -> Tensor:
    features = torch.as_tensor(x)
    if features.dim() != 2 or features.shape[0] < 2 or features.shape[1] < 1:
        raise ConfigError(
            f"a representation has shape {list(features.shape)}; it must be [inputs, features] with two or more inputs"
        )
    return features.to(torch.float64)


def _inner(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum()
