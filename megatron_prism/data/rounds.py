"""A data order that does not depend on where a run ends: rounds of a fixed number of samples, each shuffled for itself.

Megatron orders a source by all epochs that the requested number of samples needs (gpt_dataset.py:_get_num_epochs), so a
longer run would read other samples from its first step on. The first round has the samples of the schedule's length; a
run that is longer reads a second round, which is shuffled with another seed, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SEEDS = 2**32


class Rounds:
    """The datasets of consecutive rounds as one.

    Args:
        rounds: each has at least `size` samples, of which the first `size` are used.
    """

    def __init__(self, rounds: list[Any], size: int) -> None:
        self.rounds, self.size = rounds, size

    def __len__(self) -> int:
        return self.size * len(self.rounds)

    def __getitem__(self, index: int) -> Any:
        number, within = divmod(index, self.size)
        return self.rounds[number][within]

    @property
    def dataset_index(self) -> Any:
        """The source of each sample, `[samples]`."""
        import numpy

        return numpy.concatenate([each.dataset_index[: self.size] for each in self.rounds])


def in_rounds(build: Callable[[int, int], Any], *, samples: int, round_samples: int, seed: int) -> Any:
    """At least `samples` samples; a sample depends on its index, `round_samples` and `seed` only.

    Args:
        build: (number of samples, seed) -> dataset.
        round_samples: samples of a round.
    """
    count = -(-samples // round_samples)
    rounds = [build(round_samples, (seed + number) % SEEDS) for number in range(count)]
    return rounds[0] if count == 1 else Rounds(rounds, round_samples)
