"""Documents in a row that do not see each other: attention and the Mamba layers compute each document separately.

The token-wise parts of a model see whole rows. Where tokens interact (in core attention, and in Mamba's convolution and
scan), documents of similar length are taken out of the rows as one padded batch, and put back afterwards. The lengths
in a batch differ by less than a factor of two, so the batches hold fewer than twice the tokens of the rows, whatever
the lengths are. Attention and scan are causal and the padding is on the right, so every document gets the same numbers
as alone. Rotary positions count through the whole row, because attention scores depend only on their differences.

The documents travel as Megatron's `packed_seq_params`, so they belong to a micro-batch and not to the model: several
micro-batches may be in a pipeline, and a layer that is computed again in the backward pass gets those of its own.
Their format is not 'thd', so upstream's code treats the rows like any others; only our layers read them. Transformer
Engine gets `thd_parameters` in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


class RowDocuments(PackedSeqParams):
    """Where the documents of some rows are. What is left of a row is one more document.

    Attributes:
        lengths: of the documents of each row, which add up to `row_length`.
        row_length: tokens of a row, before context parallelism cuts it.

    Raises:
        ValueError: if the documents are longer than their row, or one is empty.
    """

    def __init__(
        self, lengths: Sequence[Sequence[int]], row_length: int, device: torch.device | None = None
    ) -> None:
        # RotaryEmbedding.get_rotary_seq_len reads max_seqlen_*.
        super().__init__(qkv_format="sbhd", max_seqlen_q=row_length, max_seqlen_kv=row_length)
        self.lengths, self.row_length = [_filled(each, row_length) for each in lengths], row_length
        self._device = device
        self._buckets: list[Tensor] | None = None
        self._inverse: Tensor | None = None
        # [rows, row_length]: where the document of each token starts; on the CPU, because slices are made from it.
        self.starts = torch.from_numpy(numpy.stack([_starts_of_tokens(each) for each in self.lengths]))
        self._starts_on_device: Tensor | None = None

    @classmethod
    def from_numbers(cls, documents: Tensor, device: torch.device | None = None) -> RowDocuments:
        """From the number of each token's document, `[rows, row_length]`, on the CPU; numbers do not decrease."""
        counts = [row.unique_consecutive(return_counts=True)[1].tolist() for row in documents]
        return cls(counts, documents.shape[1], device)

    @property
    def starts_on_device(self) -> Tensor:
        """`starts` where the layers compute."""
        if self._starts_on_device is None:
            self._starts_on_device = self.starts.to(self._device)
        return self._starts_on_device

    @property
    def padded_tokens(self) -> int:
        """Tokens of all padded batches together."""
        return sum(bucket.numel() for bucket in self._batches()[0])

    def apply(self, compute: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """`compute` on each document separately.

        Args:
            compute: takes `[longest, documents, ...]` for each of `rows` and returns one such tensor. It must be
                causal.
            rows: `[row_length, rows, ...]`, or any tensors whose first two dimensions are these.

        Returns:
            `[row_length, rows, ...]`
        """
        if all(len(each) == 1 for each in self.lengths):
            return compute(*rows)
        buckets, inverse = self._batches()
        flat = [row.flatten(0, 1) for row in rows]
        outputs = []
        for bucket in buckets:
            # index_select, because the gradient of indexing with a tensor sorts the indices.
            batch = [each.index_select(0, bucket.flatten()).unflatten(0, bucket.shape) for each in flat]
            outputs.append(compute(*batch).flatten(0, 1))
        return torch.cat(outputs).index_select(0, inverse).unflatten(0, (self.row_length, len(self.lengths)))

    def _batches(self) -> tuple[list[Tensor], Tensor]:
        """The token of the flattened rows for each position of each batch, and the position of each token."""
        if self._buckets is None or self._inverse is None:
            buckets, inverse = _batches(self.lengths, self.row_length)
            self._buckets = [torch.from_numpy(bucket).to(self._device) for bucket in buckets]
            self._inverse = torch.from_numpy(inverse).to(self._device)
        return self._buckets, self._inverse


def thd_parameters(documents: RowDocuments, device: torch.device | None = None) -> PackedSeqParams:
    """Transformer Engine's parameters for the same documents, with all rows joined into one.

    Upstream's rotary embedding then counts from 0 in each document; `max_seqlen` only has to be large enough.
    """
    lengths = [length for row in documents.lengths for length in row]
    bounds = torch.tensor([0, *numpy.cumsum(lengths)], dtype=torch.int32, device=device)
    longest = documents.row_length
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def documents_of(packed_seq_params: Any) -> RowDocuments | None:
    """The documents that a layer of the torch backend must separate; None if each row is one text.

    Raises:
        ValueError: for parameters that only Transformer Engine understands.
    """
    if packed_seq_params is None or isinstance(packed_seq_params, RowDocuments):
        return packed_seq_params
    raise ValueError("packed_seq_params: the torch backend takes RowDocuments (row_documents.py)")


def _filled(lengths: Sequence[int], row_length: int) -> list[int]:
    if min(lengths) < 1 or sum(lengths) > row_length:
        raise ValueError(
            f"documents of {list(lengths)} tokens do not fit into a row of {row_length}, or one is empty"
        )
    rest = row_length - sum(lengths)
    return [*lengths, rest] if rest else list(lengths)


def _starts_of_tokens(lengths: Sequence[int]) -> numpy.ndarray[Any, Any]:
    sizes = numpy.asarray(lengths, numpy.int64)
    return numpy.repeat(numpy.cumsum(sizes) - sizes, sizes)


def _batches(
    lengths: Sequence[Sequence[int]], row_length: int
) -> tuple[list[numpy.ndarray[Any, Any]], numpy.ndarray[Any, Any]]:
    rows = len(lengths)
    row = numpy.repeat(numpy.arange(rows), [len(each) for each in lengths])
    sizes = numpy.concatenate([numpy.asarray(each, numpy.int64) for each in lengths])
    starts = numpy.concatenate([numpy.cumsum(each) - each for each in lengths])
    order = numpy.argsort(-sizes, kind="stable")
    buckets, begin, offset = [], 0, 0
    inverse = numpy.empty(rows * row_length, numpy.int64)
    while begin < len(order):
        longest = int(sizes[order[begin]])
        # The sizes are sorted, so the first one that is too short ends the batch.
        end = begin + int(numpy.searchsorted(-sizes[order[begin:]], -(longest // 2), side="left"))
        end = max(end, begin + 1)
        chosen = order[begin:end]
        positions = numpy.arange(longest)[:, None]
        # Past the end of a document, its last token.
        token = starts[chosen] + numpy.minimum(positions, sizes[chosen] - 1)
        buckets.append(token * rows + row[chosen])
        real = positions < sizes[chosen]
        inverse[buckets[-1][real]] = offset + numpy.flatnonzero(real.ravel())
        offset += buckets[-1].size
        begin = end
    return buckets, inverse
