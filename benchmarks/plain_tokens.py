"""A tokenizer for benchmarks, which measure the model only."""

from __future__ import annotations

from collections.abc import Sequence


class PlainTokens:
    """A tokenizer for token ids written as numbers."""

    # No token ends an answer.
    eos_id = -1

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))
