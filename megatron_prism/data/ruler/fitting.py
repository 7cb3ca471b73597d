"""Finds the longest draft that fits into a length; the steps are the units of the task.

Tokens are counted fast: each word is encoded once, and the counts are added. Tokenizers split texts before spaces
(byte-level pre-tokenizers, Metaspace, and SentencePiece models trained to split at whitespace), so the tokens of a text
are those of its words, and a RULER text has few distinct words. `TokenCounter.agrees` checks this by encoding a whole
text, and a counter with `exact=True` always does so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import PrismError

D = TypeVar("D")
# The first step adds this many units, to measure the tokens per unit.
PROBE_UNITS = 32


class TooShort(PrismError):
    """The smallest draft does not fit; `tokens` is its length."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"{tokens} tokens are needed")
        self.tokens = tokens


class HaystackEnds(PrismError):
    """The largest draft does not fill the length; `tokens` is its length."""

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

    It has at least `budget - slack` tokens if one unit is not more than `slack` tokens; otherwise one more unit would
    exceed the budget. The result depends only on the arguments.

    Args:
        draft: builds a draft with the given number of units.
        count: the number of tokens of a draft, which grows with the units.

    Raises:
        TooShort, HaystackEnds
    """
    low, best = min_units, draft(min_units)
    tokens = count(best)
    if tokens > budget:
        raise TooShort(tokens)
    high: int | None = None
    # Tokens per unit: at first measured over the first step, later between the nearest known drafts.
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
        candidate = draft(units)
        candidate_tokens = count(candidate)
        if candidate_tokens <= budget:
            rate = max((candidate_tokens - tokens) / (units - low), 1e-3)
            low, best, tokens = units, candidate, candidate_tokens
        else:
            if high is None and not rate:
                rate = (candidate_tokens - tokens) / (units - low)
            high, high_tokens = units, candidate_tokens
    return best, tokens


# A single word is encoded after this text, so that it is not treated as the start of a text.
ANCHOR = "x"
# The cache of word counts is cleared at this size: random words (numbers, uuids) would fill the memory of a long run.
MAX_WORDS = 500_000


class TokenCounter:
    """Counts the tokens that `tokenizer.encode` would give, including the start token.

    Attributes:
        exact: encode whole texts instead of adding the counts of words.
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
            rest = sum(map(self._words.__getitem__, words))
        except KeyError:
            self._count_words(words)
            rest = sum(map(self._words.__getitem__, words))
        return self.encoded(first) + rest

    def encoded(self, text: str) -> int:
        """Number of tokens by encoding `text` as a whole."""
        return len(self.tokenizer.encode(text))

    def agrees(self, text: str) -> bool:
        """Whether the sum over words equals the number that encoding gives."""
        return self.count(text) == self.encoded(text)

    def _count_words(self, words: list[str]) -> None:
        if len(self._words) > MAX_WORDS:
            self._words.clear()
        unknown = list(set(words) - self._words.keys())
        encoded = self.tokenizer.encode_batch([f"{ANCHOR} {word}" for word in unknown])
        self._words.update(
            (word, len(ids) - self._anchor) for word, ids in zip(unknown, encoded, strict=True)
        )
