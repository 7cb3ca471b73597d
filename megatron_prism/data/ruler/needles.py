"""Needles in a haystack: eight of RULER's tasks and the compact ones, all from `NeedleTask`'s fields."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence

from megatron_prism.data.ruler.drafts import Draft, listing
from megatron_prism.data.ruler.key_values import KeyValues
from megatron_prism.data.ruler.sources import BUILT_IN, Essays, Sources
from megatron_prism.data.ruler.tasks import NeedleTask

# RULER puts needles into essays at some of so many evenly spaced depths.
DEPTHS = 40


class NeedleBuilder:
    """Drafts of a needle task; a unit is a noise sentence, a word of an essay, or a needle nobody asks for.

    Args:
        keys: draw keys from these words instead of the task's own.

    Raises:
        ConfigError: see `KeyValues`.
    """

    def __init__(
        self, task: NeedleTask, sources: Sources, length: int, seed: int, keys: Sequence[str] | None = None
    ) -> None:
        self.task = task
        self._key_values = KeyValues(task, length, seed, keys)
        self.fewest = task.num_keys * task.num_values
        self.most: int | None = None
        self.redraws = task.haystack == "needle"
        self.source = BUILT_IN
        if task.haystack == "essay":
            assert sources.essays is not None
            self._essays = sources.essays
            self.source = sources.essays.source
            self.fewest = 0
            self.most = None if sources.repeat_haystack else len(sources.essays.words)
        elif task.haystack == "needle":
            self.most = self._key_values.most_others

    def draft(self, index: int, rng: random.Random, units: int) -> Draft:
        """See `Builder`."""
        task = self.task
        drawn = self._key_values.draw(rng, units if task.haystack == "needle" else 0)
        own = drawn[: task.num_keys]
        asked = rng.sample(own, task.num_queries)
        needles = [(key, task.needle.format(key=key, value=value)) for key, values in own for value in values]
        rng.shuffle(needles)
        texts = [needle for _, needle in needles]
        if task.haystack == "essay":
            context, depths = self._in_essay(rng, units, texts)
        elif task.haystack == "needle":
            others = drawn[task.num_keys :]
            lines = [task.needle.format(key=key, value=values[0]) for key, values in others]
            context, depths = self._among(rng, lines, texts)
        else:
            lines = [task.noise[place % len(task.noise)] for place in range(units)]
            context, depths = self._among(rng, lines, texts)
        queries = [key for key, _ in asked]
        return Draft(
            task.prompt.format(context=context, query=listing(queries)),
            [value for _, values in asked for value in values],
            [depth for (key, _), depth in zip(needles, depths, strict=True) if key in queries],
        )

    def _among(self, rng: random.Random, lines: list[str], needles: list[str]) -> tuple[str, list[float]]:
        """Needles before some of the lines; their depths in the order of `needles`."""
        places = sorted(rng.sample(range(len(lines)), len(needles)))
        pieces: list[str] = []
        last = 0
        for place, needle in zip(places, needles, strict=True):
            pieces += [*lines[last:place], needle]
            last = place
        pieces += lines[last:]
        return self.task.separator.join(pieces), [round(place / len(lines), 4) for place in places]

    def _in_essay(self, rng: random.Random, units: int, needles: list[str]) -> tuple[str, list[float]]:
        """Needles between the sentences of `units` words that begin with some sentence of the essays."""
        start = self._essays.ends[rng.randrange(len(self._essays.ends))] + 1 if self._essays.ends else 0
        words, ends = _window(self._essays, start % len(self._essays.words), units)
        cuts = [0, *ends, units] if not ends or ends[-1] < units else [0, *ends]
        steps = max(DEPTHS, len(needles))
        drawn = sorted(rng.sample(range(steps), len(needles)))
        places = [cuts[int((len(cuts) - 1) * step / (steps - 1))] for step in drawn] if steps > 1 else [0]
        pieces: list[str] = []
        last = 0
        for place, needle in zip(places, needles, strict=True):
            pieces += words[last:place]
            pieces.append(needle)
            last = place
        pieces += words[last:]
        return " ".join(pieces), [round(place / units, 4) if units else 0.0 for place in places]


def _window(essays: Essays, start: int, count: int) -> tuple[list[str], list[int]]:
    """`count` words from `start`, going on at the beginning after the end, and the places after its sentence ends."""
    words: list[str] = []
    ends: list[int] = []
    while len(words) < count:
        stop = min(len(essays.words), start + count - len(words))
        first, last = bisect_left(essays.ends, start), bisect_left(essays.ends, stop)
        shift = len(words) - start + 1
        ends += [end + shift for end in essays.ends[first:last]]
        words += essays.words[start:stop]
        start = 0
    return words, ends
