"""Finding the draft that fills a length: as near below it as the task's units allow, and never above."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import PrismError

D = TypeVar("D")
# The first guess follows from what a few units more cost.
PROBE_UNITS = 32


class TooShort(PrismError):
    """Not even the smallest draft fits; `tokens` is what it needs."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"{tokens} tokens are needed")
        self.tokens = tokens


class HaystackEnds(PrismError):
    """The largest draft does not fill the length; `tokens` is what it has."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"the haystack ends at {tokens} tokens")
        self.tokens = tokens


def fit(
    draft: Callable[[int], D],
    count: Callable[[D], int],
    *,
    budget: int,
    slack: int,
    min_units: int,
    max_units: int | None,
) -> tuple[D, int]:
    """A draft of at most `budget` tokens, and its tokens.

    At least `budget - slack` tokens where one unit is no more than that; else one more unit would be too many. Which
    one is returned depends on nothing but the arguments.

    Args:
        draft: makes one of so many units.
        count: its tokens, which grow with the units.

    Raises:
        TooShort, HaystackEnds
    """
    low, best = min_units, draft(min_units)
    tokens = count(best)
    if tokens > budget:
        raise TooShort(tokens)
    high: int | None = None
    # Tokens per unit: of the first step, and later between the nearest known drafts.
    rate, high_tokens = 0.0, 0
    while budget - tokens > slack and (high is None or high - low > 1):
        missing = budget - tokens - slack // 2
        if high is not None:
            step = missing * (high - low) // max(1, high_tokens - tokens)
            units = min(max(low + step, low + 1), high - 1)
        else:
            if low == max_units:
                raise HaystackEnds(tokens)
            units = low + (max(1, int(missing / rate)) if rate else PROBE_UNITS)
            units = units if max_units is None else min(units, max_units)
        made = draft(units)
        found = count(made)
        if found <= budget:
            rate = max((found - tokens) / (units - low), 1e-3)
            low, best, tokens = units, made, found
        else:
            if high is None and not rate:
                rate = (found - tokens) / (units - low)
            high, high_tokens = units, found
    return best, tokens


# What a word stands behind when it is encoded alone, so that it gets no start of text.
ANCHOR = "x"
# Random words (numbers, uuids) would fill the memory of a long run.
MOST_WORDS = 500_000


class TokenCounter:
    """Counts as `tokenizer.encode` would, what begins a prompt included.

    Attributes:
        exact: encode whole texts instead of adding words.
    """

    def __init__(self, tokenizer: Tokenizer, exact: bool = False) -> None:
        self.tokenizer = tokenizer
        self.exact = exact
        self._words: dict[str, int] = {}
        self._anchor = len(tokenizer.encode(ANCHOR))

    def count(self, text: str) -> int:
        """Number of tokens of `text`."""
        if self.exact:
            return self.encoded(text)
        first, *words = text.split(" ")
        try:
            behind = sum(map(self._words.__getitem__, words))
        except KeyError:
            self._learn(words)
            behind = sum(map(self._words.__getitem__, words))
        return self.encoded(first) + behind

    def encoded(self, text: str) -> int:
        """Number of tokens by encoding `text` as a whole."""
        return len(self.tokenizer.encode(text))

    def agrees(self, text: str) -> bool:
        """Whether adding words gives the very number that encoding gives."""
        return self.count(text) == self.encoded(text)

    def _learn(self, words: list[str]) -> None:
        if len(self._words) > MOST_WORDS:
            self._words.clear()
        unknown = list(set(words) - self._words.keys())
        encoded = self.tokenizer.encode_batch([f"{ANCHOR} {word}" for word in unknown])
        self._words.update(
            (word, len(ids) - self._anchor) for word, ids in zip(unknown, encoded, strict=True)
        )
