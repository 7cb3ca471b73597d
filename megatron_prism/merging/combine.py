"""The methods bound to what they learn of a whole tensor: an angle, thresholds, or a seed. One object for one merge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from megatron_prism.merging.blocks import Block, Scratch
from megatron_prism.merging.exact import ExactSum
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
    """Calls a function with every block of a tensor (of all models, in fp32); results in order."""

    def __call__(self, work: Callable[[Sequence[Tensor]], T]) -> Iterator[T]: ...


@dataclass(frozen=True)
class Terms:
    """A block of every model, the base first where the method has one, and what is to become of them.

    Attributes:
        tensors: in fp32, flat.
        raw: the same as the models store them.
        result: the dtype of the result.
    """

    tensors: Sequence[Tensor]
    raw: Sequence[Tensor]
    result: torch.dtype


class Combiner(Protocol):
    """How blocks become a block of the result."""

    def learn(self, name: str, elements: int, scan: Scan) -> None:
        """What the method needs to know of the whole tensor `name`; it may scan it."""
        ...

    def __call__(self, block: Block, terms: Terms, weights: Sequence[Fraction], scratch: Scratch) -> Tensor:
        """The result in fp32, to be rounded to `terms.result`; its memory may be the scratch's.

        Args:
            weights: of the models, without the base.
        """
        ...


class Sum:
    """Linear combinations whose weights do not depend on the tensor: the correctly rounded sum."""

    def __init__(self, to_linear: Callable[[Sequence[Fraction]], Sequence[Fraction]]) -> None:
        self._to_linear = to_linear
        self._made: dict[tuple[object, ...], ExactSum] = {}

    def learn(self, name: str, elements: int, scan: Scan) -> None:
        pass

    def __call__(self, block: Block, terms: Terms, weights: Sequence[Fraction], scratch: Scratch) -> Tensor:
        stored = [tensor.dtype for tensor in terms.raw]
        key = (*weights, *stored, terms.result)
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = ExactSum(self._to_linear(weights), stored, terms.result)
        return made(terms.tensors, terms.raw, scratch.result(block.count), scratch.space)


class Slerp:
    """Weights from the angle between the two flattened tensors; they are read once more to find it."""

    def __init__(self) -> None:
        self._moments: dict[str, tuple[float, float, float]] = {}

    def learn(self, name: str, elements: int, scan: Scan) -> None:
        if name not in self._moments:
            found = list(scan(lambda tensors: moments(*tensors)))
            dot, square_a, square_b = (math.fsum(part) for part in zip(*found, strict=True))
            self._moments[name] = (dot, square_a, square_b)

    def __call__(self, block: Block, terms: Terms, weights: Sequence[Fraction], scratch: Scratch) -> Tensor:
        shares = slerp_weights(float(weights[-1]), *self._moments[block.name])
        return linear(terms.tensors, shares, scratch.result(block.count))


class Ties:
    """Thresholds per tensor and model; the tensors are read twice more to find them."""

    def __init__(self, density: float, models: int) -> None:
        self._density, self._models = density, models
        self._thresholds: dict[str, list[float]] = {}

    def learn(self, name: str, elements: int, scan: Scan) -> None:
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


class Dare:
    """Masks made where they are needed, from the seed, the tensor's name and the model's place."""

    def __init__(self, density: float, seed: int) -> None:
        self._density, self._seed = density, seed

    def learn(self, name: str, elements: int, scan: Scan) -> None:
        pass

    def __call__(self, block: Block, terms: Terms, weights: Sequence[Fraction], scratch: Scratch) -> Tensor:
        base, *others = terms.tensors
        masks = [
            dare_mask(self._seed, block.name, model, block.first, block.count, self._density)
            for model in range(len(weights))
        ]
        return dare(base, others, list(map(float, weights)), masks, self._density)


def combiner(settings: MergeSettings, models: int) -> Combiner:
    """The method of `settings` for that many models beside the base."""
    density = settings.density or 1.0
    made: dict[str, Callable[[], Combiner]] = {
        "linear": lambda: Sum(lambda weights: weights),
        "task-arithmetic": lambda: Sum(task_arithmetic_weights),
        "interpolate": lambda: Sum(lambda weights: interpolation_weights(*weights)),
        "slerp": Slerp,
        "ties": lambda: Ties(density, models),
        "dare": lambda: Dare(density, settings.seed),
    }
    return made[settings.method]()
