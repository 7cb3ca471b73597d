"""Keys and values of needles: words, numbers, uuids, or values that belong to their key."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence

from megatron_prism.data.ruler.tasks import NeedleTask
from megatron_prism.data.ruler.words import pairs
from megatron_prism.errors import ConfigError

# Random numbers and uuids come from a pool of one for so many tokens, so that each is counted once, not per sample.
TOKENS_PER_RANDOM, SMALLEST_POOL = 8, 1024


class KeyValues:
    """Draws the keys and values of one task; no key and no value comes twice in a draw.

    Attributes:
        most_others: how many keys with one value there are beyond those of the task (None: any number).

    Args:
        keys: draw keys from these words instead of the task's own.

    Raises:
        ConfigError: when there are fewer keys or values than the task needs, or a key is named twice.
    """

    def __init__(self, task: NeedleTask, length: int, seed: int, keys: Sequence[str] | None = None) -> None:
        self.task = task
        size = max(SMALLEST_POOL, length // TOKENS_PER_RANDOM)
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
                    f"task '{task.name}': digits={task.digits} gives {len(self._numbers)} numbers, {needed} are needed"
                )
            free.append(len(self._numbers) - needed)
        if self._uuids:
            per_other = (task.keys == "uuids") + uuid_values
            free.append((len(self._uuids) - task.num_keys - needed) // per_other)
        self.most_others = min(free)

    def draw(self, rng: random.Random, others: int) -> list[tuple[str, list[str]]]:
        """(key, values) of the task's keys, then of `others` more with one value each."""
        task = self.task
        sizes = [task.num_values] * task.num_keys + [1] * others
        uuid_keys = len(sizes) if task.keys == "uuids" else 0
        uuid_values = sum(sizes) if task.values == "uuids" and not task.value_words else 0
        uuids = rng.sample(self._uuids, uuid_keys + uuid_values)
        keys = uuids[:uuid_keys] if uuid_keys else rng.sample(self._words, len(sizes))
        if task.value_words:
            return self._with_their_own(rng, keys, sizes)
        values = iter(uuids[uuid_keys:] if uuid_values else rng.sample(self._numbers, sum(sizes)))
        return [(key, [next(values) for _ in range(size)]) for key, size in zip(keys, sizes, strict=True)]

    def _with_their_own(
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
            raise ConfigError(f"task '{task.name}': keys: a key is named twice")
        if len(self._words) < task.num_keys:
            raise ConfigError(f"task '{task.name}': {len(self._words)} keys, {task.num_keys} are needed")
        strange = set(self._words).difference(task.value_words) if task.value_words else set()
        if strange:
            raise ConfigError(f"task '{task.name}': keys: no values are known for '{min(strange)}'")


def _uuids(seed: int, count: int) -> list[str]:
    rng = random.Random(f"{seed}/uuids")
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


def _numbers(seed: int, count: int, digits: int) -> list[str]:
    """Distinct numbers; all there are, where they are few."""
    numbers = range(10 ** (digits - 1), 10**digits)
    drawn = random.Random(f"{seed}/numbers").sample(numbers, min(count, len(numbers)))
    return [str(number) for number in drawn]
