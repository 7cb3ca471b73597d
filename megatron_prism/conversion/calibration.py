"""Text as windows of token ids: what a model sees while its activations' ranges are measured, and what it is judged on.

There is no built-in text. The ranges become part of the quantized model, and a page of prose would give ranges that fit
no model trained on code or in another language; so the user names text like the model's use.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_prism.errors import ConfigError


def windows(
    texts: Iterable[str], tokenizer_folder: Path, count: int, length: int, vocab_size: int
) -> list[list[int]]:
    """`count` windows of `length` token ids each, from the beginning of `texts`, end to end and without padding.

    Where the tokenizer begins a text with a token of its own, so does every window: models put their largest
    activations there, and a range measured without them would clip them.

    Args:
        texts: documents; only as many are taken as are needed.

    Raises:
        ConfigError: when the texts are too short, or the tokenizer is missing or has ids beyond `vocab_size`.
    """
    tokenizer = _tokenizer(tokenizer_folder)
    begin = _begin(tokenizer)
    step = length - len(begin)
    stream: list[int] = []
    found: list[list[int]] = []
    for text in texts:
        # Not cut here, so the tokenizer's warning about its longest input means nothing.
        stream += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            stream.append(tokenizer.eos_token_id)
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


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise ConfigError(
            f"{folder}: no tokenizer_config.json; the folder needs its tokenizer to read calibration text"
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{folder}: its tokenizer cannot be loaded ({problem})") from None


def _begin(tokenizer: Any) -> list[int]:
    """The ids the tokenizer puts before a text."""
    if tokenizer.bos_token_id is None:
        return []
    return [tokenizer.bos_token_id] if tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id] else []
