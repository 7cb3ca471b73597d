"""Variable tracking: chains of assignments spread over noise, after one worked example, as in RULER."""

from __future__ import annotations

import random
import string
from itertools import pairwise

from megatron_prism.data.ruler.drafts import BUILT_IN, Draft
from megatron_prism.data.ruler.tasks import NOISE, TrackingTask

# The example has about 400 tokens; RULER's has 500.
EXAMPLE_LINES = 10
LETTERS, EXAMPLE_LETTERS = 5, 3
VALUES = range(10_000, 100_000)


class TrackingBuilder:
    """Drafts of variable tracking. A unit is a line of noise."""

    source = BUILT_IN
    max_units: int | None = None
    redraws = False

    def __init__(self, task: TrackingTask) -> None:
        self.task = task
        self.min_units = task.num_hops + 1

    def draft(self, index: int, rng: random.Random, units: int) -> Draft:
        """See `Builder`."""
        example = self._one(rng, EXAMPLE_LINES + self.task.num_hops, EXAMPLE_LETTERS)
        question = self._one(rng, units, LETTERS)
        shown = f"{example.prompt} {' '.join(example.answers)}\n\n"
        return Draft(shown + question.prompt, question.answers, question.depths)

    def _one(self, rng: random.Random, units: int, letters: int) -> Draft:
        length = self.task.num_hops + 1
        names = _names(rng, self.task.num_chains * length, letters)
        values = rng.sample(VALUES, self.task.num_chains)
        chains = [names[start : start + length] for start in range(0, len(names), length)]
        lines = [NOISE] * units
        for chain, value in zip(chains, values, strict=True):
            steps = [f"VAR {chain[0]} = {value}"]
            steps += [f"VAR {name} = VAR {before}" for before, name in pairwise(chain)]
            positions = sorted(rng.sample(range(len(lines)), length))
            # Insert from the end, so that earlier positions do not move.
            for position, step in reversed(list(zip(positions, steps, strict=True))):
                lines.insert(position, step)
        starts = tuple(f"VAR {name} = " for name in chains[0])
        depths = [
            round(position / len(lines), 4) for position, line in enumerate(lines) if line.startswith(starts)
        ]
        prompt = self.task.prompt.format(context="\n".join(lines), query=values[0], count=length)
        return Draft(prompt, chains[0], depths)


def _names(rng: random.Random, count: int, letters: int) -> list[str]:
    """Distinct variable names of upper-case letters."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
    return list(names)
