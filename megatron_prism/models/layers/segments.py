"""Several texts in one row that do not see each other: attention and the Mamba scan process each text separately.

A row of packed texts passes through the token-wise parts of a model unchanged, without padding. Where tokens
interact (in core attention and in Mamba's convolution and scan) the row is unpacked to a padded batch of texts and
packed again afterwards. Both are causal and the padding is on the right, so every text gets the same numbers as
alone. Rotary positions count through the whole row, because attention scores depend only on their differences.

Megatron's `packed_seq_params` do the same through Transformer Engine, but MambaModel does not support them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_prism.errors import ParallelError

# The name of the attribute in which modules hold the segments.
SEGMENTS = "segments"


class Segments:
    """The lengths of the texts in a row. The rest of the row is treated as one more text.

    Args:
        lengths: of the texts, in their order.
        row_length: tokens of the row.

    Raises:
        ValueError: if the texts are longer than the row, or one is empty.
    """

    def __init__(self, lengths: Sequence[int], row_length: int, device: torch.device | None = None) -> None:
        if min(lengths) < 1 or sum(lengths) > row_length:
            raise ValueError(
                f"texts of {list(lengths)} tokens do not fit into a row of {row_length}, or one is empty"
            )
        rest = row_length - sum(lengths)
        self.lengths = [*lengths, rest] if rest else list(lengths)
        sizes = torch.tensor(self.lengths, device=device)
        starts = sizes.cumsum(0) - sizes
        offsets = torch.arange(int(sizes.max()), device=device)
        # [longest, texts]: the token of the row for each position of the batch; past the end of a text, its last token.
        self.gather = starts + torch.minimum(offsets[:, None], sizes - 1)
        # [row_length]: the position of each token of the row in the flattened batch.
        texts = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
        self.scatter = (torch.arange(row_length, device=device) - starts[texts]) * len(sizes) + texts

    def unpack(self, row: Tensor) -> Tensor:
        """`[row_length, 1, ...]` -> `[longest, texts, ...]`."""
        return row[self.gather, 0]

    def repack(self, batch: Tensor) -> Tensor:
        """`[longest, texts, ...]` -> `[row_length, 1, ...]`."""
        return batch.flatten(0, 1)[self.scatter, None]


def check_packing(model: Any) -> None:
    """Raise a ParallelError if this model cannot process packed texts separately."""
    modules = [module for module in model.modules() if hasattr(module, SEGMENTS)]
    mixers = [m for m in model.modules() if hasattr(m, "d_inner_local_tp") or hasattr(m, "core_attention")]
    if len(modules) < len(mixers):
        raise ParallelError(
            "packing=true: only the torch backend processes packed texts separately; use packing=false"
        )
    if model.config.context_parallel_size > 1:
        raise ParallelError(
            f"packing=true: not supported with context_parallel_size={model.config.context_parallel_size}, which cuts "
            "rows inside a text; use packing=false"
        )


def set_segments(model: Any, segments: Segments | None) -> None:
    """Set the texts of the next rows for `model` (an unwrapped chunk); None: each row is one text.

    Recomputed layers use them again in the backward pass, so they must be reset after it, not after the forward pass.
    """
    for module in model.modules():
        if hasattr(module, SEGMENTS):
            setattr(module, SEGMENTS, segments)
