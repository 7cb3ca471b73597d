"""Cuts text into windows of token ids, for measuring the ranges of activations and for comparing logits.

There is no built-in text. The ranges become part of the quantized model, and English prose would give wrong ranges
for a model of code or of another language. So the user names text that is like the text the model will see.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError


def windows(
    texts: Iterable[str], tokenizer_folder: Path, *, count: int, length: int, vocab_size: int
) -> list[list[int]]:
    """`count` windows of `length` token ids each, from the beginning of `texts`, one after the other, without padding.

    If texts begin with a start token (`Tokenizer.policy`), every window does. Models have their largest activations
    at the start token, and a range measured without it would clip them.

    Args:
        texts: documents; no more are read than needed.

    Raises:
        ConfigError: if the texts are too short, or an id is not below `vocab_size`.
        DataError: if the folder has no tokenizer.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    begin = list(tokenizer.policy.begin)
    step = length - len(begin)
    stream: list[int] = []
    found: list[list[int]] = []
    for text in texts:
        stream += [*tokenizer.encode_fragment(text), *tokenizer.policy.end]
        complete = min(len(stream) // step, count - len(found))
        found += [begin + stream[i * step : (i + 1) * step] for i in range(complete)]
        stream = stream[complete * step :]
        if len(found) == count:
            break
    else:
        have, needed = len(found) * step + len(stream), count * step
        raise ConfigError(
            f"the calibration text has {have} tokens, but {count} windows of length={length} need {needed}; "
            f"use more text, fewer samples or a smaller length"
        )
    largest = max(max(window) for window in found)
    if largest >= vocab_size:
        raise ConfigError(
            f"{tokenizer_folder}: its tokenizer gives the id {largest}, but the model has vocab_size={vocab_size}"
        )
    return found
