"""The samples a folder of tokens gives: packed sequences where it was packed, else documents joined end to end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prism.data.blend import blended_dataset
from megatron_prism.data.packed_dataset import is_packed, packed_dataset
from megatron_prism.data.tokenizer import Tokenizer


def training_dataset(
    tokens: Path,
    split: str,
    weights: Mapping[str, float],
    sequence_length: int,
    num_samples: int,
    seed: int,
    cache: Path,
    tokenizer: Tokenizer,
) -> Any:
    """At least `num_samples` samples, as `blend.blended_dataset` or `packed_dataset.packed_dataset` describes.

    Both give dicts of `tokens`, `labels`, `loss_mask`, `position_ids`, each `[sequence_length]`, in proportion to
    `weights`, and `blend.source_counts` reads both. All ranks must call this. Only the first writes into `cache`.
    """
    if is_packed(tokens):
        return packed_dataset(tokens, split, weights, sequence_length, num_samples, seed, tokenizer)
    return blended_dataset(tokens, split, weights, sequence_length, num_samples, seed, cache, tokenizer)
