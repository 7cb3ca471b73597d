"""CKA of more inputs than fit into memory, from minibatches: two ways that give different numbers.

`ExactCKA` adds up cross-products of features, which are d x d, and gives the value of `linear_cka` of all inputs
whatever the batches are ("minibatch-exact"). `MinibatchCKA` adds up unbiased estimates of HSIC, which are n x n for n
inputs of one batch, and estimates the value of `unbiased_cka` (Nguyen, Raghu, Kornblith 2021, "Do Wide and Deep
Networks Learn the Same Things?", section 3): use it if features are too many for d x d matrices.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from megatron_prism.analysis.cka.similarity import unbiased_hsic
from megatron_prism.errors import ConfigError


class ExactCKA:
    """The CKA of all inputs seen so far, as if they had been compared at once.

    Means and cross-products are combined as in Chan, Golub, LeVeque 1983, so that no large sums are subtracted.
    """

    def __init__(self) -> None:
        self.inputs = 0
        self._means: list[Tensor] = []
        # The centred X'X, Y'Y and Y'X.
        self._products: list[Tensor] = []

    def update(self, x: Any, y: Any) -> None:
        """Add a batch, `[n, d1]` and `[n, d2]`, n of 1 or more.

        Raises:
            ConfigError: for other shapes.
        """
        first, second = _batch(x, y)
        n = first.shape[0]
        means = [first.mean(dim=0), second.mean(dim=0)]
        first, second = first - means[0], second - means[1]
        products = [first.T @ first, second.T @ second, second.T @ first]
        if not self.inputs:
            self.inputs, self._means, self._products = n, means, products
            return
        if [each.shape for each in means] != [each.shape for each in self._means]:
            raise ConfigError(
                f"a batch has {means[0].numel()} and {means[1].numel()} features, those before it "
                f"{self._means[0].numel()} and {self._means[1].numel()}"
            )
        total = self.inputs + n
        steps = [new - old for new, old in zip(means, self._means, strict=True)]
        weight = self.inputs * n / total
        between = [steps[0].outer(steps[0]), steps[1].outer(steps[1]), steps[1].outer(steps[0])]
        self._products = [
            old + new + weight * each
            for old, new, each in zip(self._products, products, between, strict=True)
        ]
        self._means = [old + step * (n / total) for old, step in zip(self._means, steps, strict=True)]
        self.inputs = total

    def value(self) -> float | None:
        """`linear_cka` of all inputs; None before two of them, or if a representation is the same for all."""
        if not self.inputs:
            return None
        own, other, cross = (each.norm() for each in self._products)
        return float(cross.square() / (own * other)) if own * other > 0 else None


class MinibatchCKA:
    """The minibatch estimator: sums of unbiased HSIC over batches. Batches must have the same size, four or more."""

    def __init__(self) -> None:
        self.batches = 0
        self._size = 0
        self._sums = [0.0, 0.0, 0.0]

    def update(self, x: Any, y: Any) -> None:
        """Add a batch, `[n, d1]` and `[n, d2]`.

        Raises:
            ConfigError: for other shapes, a batch of another size than the first, or of fewer than four inputs.
        """
        first, second = _batch(x, y)
        size = first.shape[0]
        if self.batches and size != self._size:
            raise ConfigError(
                f"a batch has {size} inputs, the first had {self._size}; all must have the same number, so leave out "
                "a shorter last batch"
            )
        first, second = first - first.mean(dim=0), second - second.mean(dim=0)
        grams = first @ first.T, second @ second.T
        pairs = ((grams[0], grams[0]), (grams[1], grams[1]), grams)
        self._sums = [total + unbiased_hsic(*pair) for total, pair in zip(self._sums, pairs, strict=True)]
        self.batches, self._size = self.batches + 1, size

    def value(self) -> float | None:
        """The estimate; None before the first batch, or if the HSIC of a representation with itself is not positive."""
        own, other, cross = self._sums
        return cross / math.sqrt(own * other) if own > 0 and other > 0 else None


def _batch(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    first, second = (torch.as_tensor(each).to(torch.float64) for each in (x, y))
    if first.dim() != 2 or second.dim() != 2 or first.shape[0] != second.shape[0] or not first.shape[0]:
        raise ConfigError(
            f"a batch has shapes {list(first.shape)} and {list(second.shape)}; they must be [inputs, features] of the "
            "same inputs"
        )
    return first, second
