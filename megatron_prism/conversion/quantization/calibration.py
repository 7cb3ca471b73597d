"""Text as windows of token ids: what a model sees while its activations' ranges are measured, and what it is judged on.

There is no built-in text. The ranges become part of the quantized model, and a page of prose would give ranges that fit
no model trained on code or in another language; so the user names text like the model's use.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError


def windows(
    texts: Iterable[str], tokenizer_folder: Path, count: int, length: int, vocab_size: int
) -> list[list[int]]:
    """`count` windows of `length` token ids each, from the beginning of `texts`, end to end and without padding.

    Where a text begins with a token of its own (`Tokenizer.policy`), so does every window: models put their largest
    activations there, and a range measured without them would clip them.

    Args:
        texts: documents; only as many are taken as are needed.

    Raises:
        ConfigError: when the texts are too short, or the tokenizer has ids beyond `vocab_size`.
        DataError: when the folder has no tokenizer.
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
            f"calibration text: {have} tokens, {count} windows of length={length} need {needed}; "
            f"give more text, or fewer samples or a smaller length"
        )
    largest = max(max(window) for window in found)
    if largest >= vocab_size:
        raise ConfigError(
            f"{tokenizer_folder}: its tokenizer gives id {largest}, the model has vocab_size={vocab_size}"
        )
    return found
