"""Drafts: prompts with a given number of haystack units. A draft with more units is longer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy

# The source of a sample whose text belongs to the task.
BUILT_IN = "built in"


@dataclass(frozen=True)
class Draft:
    """A prompt, its answers, and the depths (0 to 1) of the needles in the context."""

    prompt: str
    answers: list[str]
    depths: list[float]


class Builder(Protocol):
    """Builds the drafts of one task.

    Attributes:
        source: origin of its text.
        min_units, max_units: number of haystack units that it needs and has (None: unlimited).
        redraws: drafts with the same number of units differ in length, so another draw may be closer to the target.
    """

    source: str
    min_units: int
    max_units: int | None
    redraws: bool

    def draft(self, index: int, rng: random.Random, units: int) -> Draft:
        """Sample `index` with `units` haystack units. The same generator state gives the same draft."""
        ...


def random_order(count: int, rng: random.Random) -> Iterator[int]:
    """0..count-1 in random order, drawn lazily (Fisher-Yates on a sparse array)."""
    moved: dict[int, int] = {}
    for place in range(count):
        chosen = rng.randrange(place, count)
        yield moved.get(chosen, chosen)
        moved[chosen] = moved.get(place, place)


def shuffled(items: list[str], rng: random.Random) -> list[str]:
    """A list in random order. Uses numpy, which is ten times as fast on long lists."""
    order = numpy.random.default_rng(rng.getrandbits(64)).permutation(len(items))
    return [items[place] for place in order.tolist()]


def listing(items: list[str]) -> str:
    """'a', 'a, and b', 'a, b, and c': RULER's form for several keys."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}, and {items[-1]}"
