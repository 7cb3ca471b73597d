"""Counting the tokens of long texts fast: each word once, then sums.

Tokenizers cut texts before spaces (byte-level pre-tokenizers, Metaspace, and SentencePiece models trained to split at
whitespace), so the tokens of a text are those of its words, and a RULER text has few different ones. Whether that
holds is not assumed: `agrees` compares with real encoding, and a counter that is told `exact` encodes everything.
"""

from __future__ import annotations

from megatron_prism.data.tokenizer import Tokenizer

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
