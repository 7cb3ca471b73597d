"""A prompt before its length is settled, and what makes one: more units of haystack, a longer prompt."""

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
    """A prompt, its answers, and where in the context (0 to 1) what is asked for stands."""

    prompt: str
    answers: list[str]
    depths: list[float]


class Builder(Protocol):
    """Makes the drafts of one task.

    Attributes:
        source: where its text comes from.
        fewest, most: units of haystack it needs, and has (None: any number).
        redraws: another draw has another length, so trying again may come nearer to the target.
    """

    source: str
    min_units: int
    max_units: int | None
    redraws: bool

    def draft(self, index: int, rng: random.Random, units: int) -> Draft:
        """Sample `index` with `units` units of haystack; the same generator state gives the same draft."""
        ...


def random_order(count: int, rng: random.Random) -> Iterator[int]:
    """0..count-1 in random order, drawn one by one (Fisher-Yates on a sparse array)."""
    moved: dict[int, int] = {}
    for place in range(count):
        chosen = rng.randrange(place, count)
        yield moved.get(chosen, chosen)
        moved[chosen] = moved.get(place, place)


def shuffled(items: list[str], rng: random.Random) -> list[str]:
    """A list in random order; by numpy, which is ten times as fast on long ones."""
    order = numpy.random.default_rng(rng.getrandbits(64)).permutation(len(items))
    return [items[place] for place in order.tolist()]


def listing(items: list[str]) -> str:
    """'a', 'a, and b', 'a, b, and c': as RULER names several keys."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}, and {items[-1]}"
