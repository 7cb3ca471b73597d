"""The prompts of one row while a model generates: the row, and the padded batch of its texts.

Where tokens interact (in core attention and in Mamba's convolution and scan) the row is unpacked to a padded batch and
packed again afterwards. Both are causal and the padding is on the right, so every text gets the same numbers as alone.
There is one batch and not several, because a cache has one slot per text in the order of the texts; training uses
`row_documents.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
