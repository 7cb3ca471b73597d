"""Several texts in one row that do not see each other: attention and the Mamba scan work on each text apart.

A row of packed texts goes through the token-wise parts of a model as it is, without padding. Where tokens meet, in
core attention and in Mamba's convolution and scan, the texts are laid side by side as a padded batch and put back
after. Both are causal and the padding is on the right, so every text gets the very numbers it would get alone. Rotary
positions count through the row: attention scores depend on their differences only.

Megatron's own `packed_seq_params` do the same through Transformer Engine, and MambaModel does not take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_prism.errors import ParallelError

# The modules that look at the segments carry them under this name.
SEGMENTS = "segments"


class Segments:
    """Lengths of the texts in a row; what is left of the row counts as one more text.

    Args:
        lengths: of the texts, in their order.
        row_length: tokens of the row.

    Raises:
        ValueError: if the texts are longer than the row, or one is empty.
    """

    def __init__(self, lengths: Sequence[int], row_length: int, device: torch.device | None = None) -> None:
        if min(lengths) < 1 or sum(lengths) > row_length:
            raise ValueError(f"texts of {list(lengths)} tokens do not make up a row of {row_length}")
        rest = row_length - sum(lengths)
        self.lengths = [*lengths, rest] if rest else list(lengths)
        sizes = torch.tensor(self.lengths, device=device)
        starts = sizes.cumsum(0) - sizes
        offsets = torch.arange(int(sizes.max()), device=device)
        # [longest, texts]: where in the row each place of the batch comes from; past a text's end, its last token.
        self.gather = starts + torch.minimum(offsets[:, None], sizes - 1)
        # [row_length]: where in the flattened batch each token of the row is found.
        texts = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
        self.scatter = (torch.arange(row_length, device=device) - starts[texts]) * len(sizes) + texts

    def apart(self, row: Tensor) -> Tensor:
        """`[row_length, 1, ...]` -> `[longest, texts, ...]`."""
        return row[self.gather, 0]

    def together(self, batch: Tensor) -> Tensor:
        """`[longest, texts, ...]` -> `[row_length, 1, ...]`."""
        return batch.flatten(0, 1)[self.scatter, None]


def check_packing(model: Any) -> None:
    """Raise a ParallelError if this model cannot keep packed texts apart."""
    modules = [module for module in model.modules() if hasattr(module, SEGMENTS)]
    mixers = [m for m in model.modules() if hasattr(m, "d_inner_local_tp") or hasattr(m, "core_attention")]
    if len(modules) < len(mixers):
        raise ParallelError(
            "packing=true: only the torch backend keeps packed texts apart; use packing=false"
        )
    if model.config.context_parallel_size > 1:
        raise ParallelError(
            f"packing=true: not with context_parallel_size={model.config.context_parallel_size}, which cuts a row at "
            "other places; use packing=false"
        )


def set_segments(model: Any, segments: Segments | None) -> None:
    """From now on rows given to `model` (an unwrapped chunk) hold these texts; None: each row is one text.

    Recomputed layers look again in the backward pass, so this is undone after it, not after the forward pass.
    """
    for module in model.modules():
        if hasattr(module, SEGMENTS):
            setattr(module, SEGMENTS, segments)
