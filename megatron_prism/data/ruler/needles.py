"""Needles in a haystack: eight of RULER's tasks and the compact tasks, all described by the fields of `NeedleTask`."""

from __future__ import annotations

import random
import uuid
from bisect import bisect_left
from collections.abc import Sequence

from megatron_prism.data.ruler.drafts import BUILT_IN, Draft, listing
from megatron_prism.data.ruler.sources import Essays, Sources
from megatron_prism.data.ruler.tasks import NeedleTask
from megatron_prism.data.ruler.word_lists import pairs
from megatron_prism.errors import ConfigError

# RULER puts needles into essays at random ones of this many evenly spaced depths.
DEPTHS = 40


class NeedleBuilder:
    """Drafts of a needle task. A unit is a noise sentence, a word of an essay, or a needle that is not queried.

    Args:
        keys: words from which keys are drawn; None: the task's own.

    Raises:
        ConfigError: see `KeyValues`.
    """

    def __init__(
        self, task: NeedleTask, sources: Sources, *, length: int, seed: int, keys: Sequence[str] | None = None
    ) -> None:
        self.task = task
        self._key_values = KeyValues(task, length, seed, keys)
        self.min_units = task.num_keys * task.num_values
        self.max_units: int | None = None
        self.redraws = task.haystack == "needle"
        self.source = BUILT_IN
        if task.haystack == "essay":
            assert sources.essays is not None
            self._essays = sources.essays
            self.source = sources.essays.source
            self.min_units = 0
            self.max_units = None if sources.repeat_haystack else len(sources.essays.words)
        elif task.haystack == "needle":
            self.max_units = self._key_values.max_others

    def draft(self, index: int, rng: random.Random, units: int) -> Draft:
        """See `Builder`."""
        task = self.task
        key_values = self._key_values.draw(rng, units if task.haystack == "needle" else 0)
        own = key_values[: task.num_keys]
        queried = rng.sample(own, task.num_queries)
        needles = [(key, task.needle.format(key=key, value=value)) for key, values in own for value in values]
        rng.shuffle(needles)
        texts = [needle for _, needle in needles]
        if task.haystack == "essay":
            context, depths = self._in_essay(rng, units, texts)
        elif task.haystack == "needle":
            others = key_values[task.num_keys :]
            lines = [task.needle.format(key=key, value=values[0]) for key, values in others]
            context, depths = self._among(rng, lines, texts)
        else:
            lines = [task.noise[position % len(task.noise)] for position in range(units)]
            context, depths = self._among(rng, lines, texts)
        queries = [key for key, _ in queried]
        return Draft(
            task.prompt.format(context=context, query=listing(queries)),
            [value for _, values in queried for value in values],
            [depth for (key, _), depth in zip(needles, depths, strict=True) if key in queries],
        )

    def _among(self, rng: random.Random, lines: list[str], needles: list[str]) -> tuple[str, list[float]]:
        """Insert the needles before random lines; return the text, and the depths in the order of `needles`."""
        positions = sorted(rng.sample(range(len(lines)), len(needles)))
        pieces: list[str] = []
        last = 0
        for position, needle in zip(positions, needles, strict=True):
            pieces += [*lines[last:position], needle]
            last = position
        pieces += lines[last:]
        return self.task.separator.join(pieces), [round(position / len(lines), 4) for position in positions]

    def _in_essay(self, rng: random.Random, units: int, needles: list[str]) -> tuple[str, list[float]]:
        """Insert the needles between sentences of `units` words that start at a random sentence of the essays."""
        start = self._essays.ends[rng.randrange(len(self._essays.ends))] + 1 if self._essays.ends else 0
        words, ends = _window(self._essays, start % len(self._essays.words), units)
        cuts = [0, *ends, units] if not ends or ends[-1] < units else [0, *ends]
        steps = max(DEPTHS, len(needles))
        depth_steps = sorted(rng.sample(range(steps), len(needles)))
        positions = (
            [cuts[int((len(cuts) - 1) * step / (steps - 1))] for step in depth_steps] if steps > 1 else [0]
        )
        pieces: list[str] = []
        last = 0
        for position, needle in zip(positions, needles, strict=True):
            pieces += words[last:position]
            pieces.append(needle)
            last = position
        pieces += words[last:]
        return " ".join(pieces), [round(position / units, 4) if units else 0.0 for position in positions]


def _window(essays: Essays, start: int, count: int) -> tuple[list[str], list[int]]:
    """`count` words from `start`, wrapping around at the end, and the positions after the ends of their sentences."""
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


# Random numbers and uuids come from a pool with one for every 8 tokens of the length, so their tokens are counted once
# and not per sample.
TOKENS_PER_RANDOM, MIN_POOL = 8, 1024


class KeyValues:
    """Draws the keys and values of one task. Within a draw, all keys and all values are distinct.

    Attributes:
        max_others: maximum number of further keys, with one value each.

    Args:
        keys: words from which keys are drawn; None: the task's own.

    Raises:
        ConfigError: if there are fewer keys or values than the task needs, or a key occurs twice.
    """

    def __init__(self, task: NeedleTask, length: int, seed: int, keys: Sequence[str] | None = None) -> None:
        self.task = task
        size = max(MIN_POOL, length // TOKENS_PER_RANDOM)
        uuid_values = task.values == "uuids" and not task.value_words
        number_values = task.values == "numbers" and not task.value_words
        self._uuids = _uuids(seed, size) if task.keys == "uuids" or uuid_values else []
        self._numbers = _numbers(seed, size, task.digits) if number_values else []
        own = task.key_words or tuple(task.value_words) or pairs()
        self._words = tuple(own if keys is None else keys) if task.keys == "words" else ()
        needed = task.num_keys * task.num_values
        free: list[int] = []
        if task.keys == "words":
            self._check_words()
            free.append(len(self._words) - task.num_keys)
        if number_values:
            if len(self._numbers) < needed:
                raise ConfigError(
                    f"task '{task.name}': digits={task.digits} allows {len(self._numbers)} numbers, but {needed} are "
                    "needed; raise digits"
                )
            free.append(len(self._numbers) - needed)
        if self._uuids:
            per_other = (task.keys == "uuids") + uuid_values
            free.append((len(self._uuids) - task.num_keys - needed) // per_other)
        self.max_others = min(free)

    def draw(self, rng: random.Random, others: int) -> list[tuple[str, list[str]]]:
        """(key, values) of the task's keys, then of `others` more keys with one value each."""
        task = self.task
        sizes = [task.num_values] * task.num_keys + [1] * others
        uuid_keys = len(sizes) if task.keys == "uuids" else 0
        uuid_values = sum(sizes) if task.values == "uuids" and not task.value_words else 0
        uuids = rng.sample(self._uuids, uuid_keys + uuid_values)
        keys = uuids[:uuid_keys] if uuid_keys else rng.sample(self._words, len(sizes))
        if task.value_words:
            return self._from_value_words(rng, keys, sizes)
        values = iter(uuids[uuid_keys:] if uuid_values else rng.sample(self._numbers, sum(sizes)))
        return [(key, [next(values) for _ in range(size)]) for key, size in zip(keys, sizes, strict=True)]

    def _from_value_words(
        self, rng: random.Random, keys: list[str], sizes: list[int]
    ) -> list[tuple[str, list[str]]]:
        used: set[str] = set()
        drawn = []
        for key, size in zip(keys, sizes, strict=True):
            free = [value for value in self.task.value_words[key] if value not in used]
            if len(free) < size:
                raise ConfigError(f"task '{self.task.name}': value_words has too few values for '{key}'")
            values = rng.sample(free, size)
            used.update(values)
            drawn.append((key, values))
        return drawn

    def _check_words(self) -> None:
        task = self.task
        if len(set(self._words)) != len(self._words):
            raise ConfigError(f"task '{task.name}': keys: a key occurs twice; remove one")
        if len(self._words) < task.num_keys:
            raise ConfigError(
                f"task '{task.name}': {len(self._words)} keys, but {task.num_keys} are needed; add keys"
            )
        unknown = set(self._words).difference(task.value_words) if task.value_words else set()
        if unknown:
            raise ConfigError(
                f"task '{task.name}': keys: '{min(unknown)}' has no values; use keys of the task"
            )


def _uuids(seed: int, count: int) -> list[str]:
    rng = random.Random(f"{seed}/uuids")
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


def _numbers(seed: int, count: int, digits: int) -> list[str]:
    """Distinct numbers; all numbers with this many digits if there are not more than `count`."""
    numbers = range(10 ** (digits - 1), 10**digits)
    drawn = random.Random(f"{seed}/numbers").sample(numbers, min(count, len(numbers)))
    return [str(number) for number in drawn]
