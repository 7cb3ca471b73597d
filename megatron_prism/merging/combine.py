"""Each method as an object that combines blocks and keeps the statistics of whole tensors that it needs.

Statistics are angles or thresholds. One object serves one merge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from megatron_prism.merging.blocks import Block, Scratch
from megatron_prism.merging.exact.weighted_sum import ExactSum
from megatron_prism.merging.methods import (
    HALF,
    MagnitudeCounts,
    dare,
    dare_mask,
    interpolation_weights,
    linear,
    moments,
    slerp_weights,
    task_arithmetic_weights,
    ties,
)
from megatron_prism.merging.settings import MergeSettings

T = TypeVar("T")


class Scan(Protocol):
    """Calls a function with every block of a tensor (of all models, in fp32). The results come in order."""

    def __call__(self, work: Callable[[Sequence[Tensor]], T]) -> Iterator[T]: ...


@dataclass(frozen=True)
class Terms:
    """A block of every model, with the base first if the method has one.

    Attributes:
        tensors: in fp32, flat.
        stored: the same in the dtypes in which the models store them.
        dtype: of the result.
    """

    tensors: Sequence[Tensor]
    stored: Sequence[Tensor]
    dtype: torch.dtype


class Combiner(Protocol):
    """Combines the blocks of all models into a block of the result."""

    def collect_statistics(self, name: str, elements: int, scan: Scan) -> None:
        """Compute the statistics of the whole tensor `name` that the method needs, by scanning it."""
        ...

    def __call__(self, block: Block, terms: Terms, weights: Sequence[Fraction], scratch: Scratch) -> Tensor:
        """The result in fp32, not yet rounded to `terms.dtype`. Its memory may belong to `scratch`.

        Args:
            weights: of the models, without the base.
        """
        ...


class LinearMerge:
    """Linear combinations whose weights do not depend on the tensor: the correctly rounded sum."""

    def __init__(self, to_linear: Callable[[Sequence[Fraction]], Sequence[Fraction]]) -> None:
        self._to_linear = to_linear
        self._sums: dict[tuple[object, ...], ExactSum] = {}

    def collect_statistics(self, name: str, elements: int, scan: Scan) -> None:
        pass

    def __call__(self, block: Block, terms: Terms, weights: Sequence[Fraction], scratch: Scratch) -> Tensor:
        dtypes = [tensor.dtype for tensor in terms.stored]
        key = (*weights, *dtypes, terms.dtype)
        exact_sum = self._sums.get(key)
        if exact_sum is None:
            exact_sum = self._sums[key] = ExactSum(self._to_linear(weights), dtypes, terms.dtype)
        return exact_sum(terms.tensors, terms.stored, scratch.result(block.count), scratch.space)


class SlerpMerge:
    """Weights from the angle between the two flattened tensors. The tensors are read one more time to compute it."""

    def __init__(self) -> None:
        self._moments: dict[str, tuple[float, float, float]] = {}

    def collect_statistics(self, name: str, elements: int, scan: Scan) -> None:
        if name not in self._moments:
            found = list(scan(lambda tensors: moments(*tensors)))
            dot, square_a, square_b = (math.fsum(part) for part in zip(*found, strict=True))
            self._moments[name] = (dot, square_a, square_b)

    def __call__(self, block: Block, terms: Terms, weights: Sequence[Fraction], scratch: Scratch) -> Tensor:
        shares = slerp_weights(float(weights[-1]), *self._moments[block.name])
        return linear(terms.tensors, shares, scratch.result(block.count))


class TiesMerge:
    """Thresholds for each tensor and model. The tensors are read two more times to find them."""

    def __init__(self, density: float, models: int) -> None:
        self._density, self._models = density, models
        self._thresholds: dict[str, list[float]] = {}

    def collect_statistics(self, name: str, elements: int, scan: Scan) -> None:
        if name in self._thresholds:
            return
        keep = max(1, round(self._density * elements))
        counters = [MagnitudeCounts(keep) for _ in range(self._models)]

        def count(tensors: Sequence[Tensor]) -> Tensor:
            base, *others = tensors
            pairs = zip(counters, others, strict=True)
            return torch.stack([counter.count(other - base) for counter, other in pairs])

        for _ in range(2):
            totals = sum(scan(count), start=torch.zeros(self._models, HALF, dtype=torch.int64))
            found = [counter.finish(each) for counter, each in zip(counters, totals, strict=True)]
        self._thresholds[name] = [value for value in found if value is not None]

    def __call__(self, block: Block, terms: Terms, weights: Sequence[Fraction], scratch: Scratch) -> Tensor:
        base, *others = terms.tensors
        return ties(base, others, list(map(float, weights)), self._thresholds[block.name])


class DareMerge:
    """Masks made for each block, from the seed, the tensor's name and the position of the model."""

    def __init__(self, density: float, seed: int) -> None:
        self._density, self._seed = density, seed

    def collect_statistics(self, name: str, elements: int, scan: Scan) -> None:
        pass

    def __call__(self, block: Block, terms: Terms, weights: Sequence[Fraction], scratch: Scratch) -> Tensor:
        base, *others = terms.tensors
        masks = [
            dare_mask(
                self._seed,
                block.name,
                model,
                first=block.first,
                count=block.count,
                density=self._density,
            )
            for model in range(len(weights))
        ]
        return dare(base, others, list(map(float, weights)), masks, density=self._density)


def combiner(settings: MergeSettings, models: int) -> Combiner:
    """The method of `settings` for this number of models, not counting the base."""
    density = settings.density or 1.0
    combiners: dict[str, Callable[[], Combiner]] = {
        "linear": lambda: LinearMerge(lambda weights: weights),
        "task-arithmetic": lambda: LinearMerge(task_arithmetic_weights),
        "interpolate": lambda: LinearMerge(lambda weights: interpolation_weights(*weights)),
        "slerp": SlerpMerge,
        "ties": lambda: TiesMerge(density, models),
        "dare": lambda: DareMerge(density, settings.seed),
    }
    return combiners[settings.method]()
