"""Exact causal attention, one block of queries at a time, for cases that torch's `is_causal` does not cover.

`scaled_dot_product_attention` is causal without a mask only on a full square. Queries that are a part of the sequence
(context parallelism, a KV cache) or a sliding window need a mask, and a mask of [queries, keys] takes more memory than
everything else at long context: 2 GiB in fp32 for 16k queries and 32k keys, kept for backward in every layer. Here:

- Each block of queries uses the keys up to its last query, and no further back than the window. Fully masked keys are
  never computed.
- Relative to the end of a block the mask is always the same, so one small mask serves all blocks. If documents are
  separate, a block also skips the keys before its first document and masks those of other documents.
- Only the inputs are kept. Backward computes a block's attention again, then its gradient, and under context
  parallelism gathers the keys and values again, so the memory of a rank falls with the number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from megatron_prism.models.layers.row_documents import RowDocuments

# Rows of one block's scores. Query heads that share a key are rows of one block. The mask is [ROWS, keys].
ROWS = 256
# A GPU starts a kernel in the time that it needs for a small block, so blocks there are as large as a mask of this many
# elements (256 MiB in bf16) allows, but not above MOST_ROWS: a window's block computes rows * rows / 2 masked scores.
DEVICE_MASK, MOST_ROWS = 2**27, 4096


@dataclass(frozen=True)
class Shards:
    """How a sequence is spread over the ranks of a group.

    `starts[rank]` are the positions at which the rank's pieces begin; all pieces have the same length.
    """

    group: dist.ProcessGroup
    starts: list[list[int]]

    def _order(self) -> list[int]:
        """Pieces in the order of the sequence, numbered as the ranks hold them."""
        flat = [start for starts in self.starts for start in starts]
        return sorted(range(len(flat)), key=flat.__getitem__)

    def gather(self, local: Tensor) -> Tensor:
        """The whole sequence in order, gathered from every rank's `[local seq, ...]`."""
        parts = [torch.empty_like(local) for _ in self.starts]
        dist.all_gather(parts, local.contiguous(), group=self.group)
        pieces = [piece for part in parts for piece in part.chunk(len(self.starts[0]))]
        return torch.cat([pieces[index] for index in self._order()])

    def reduce(self, whole: Tensor) -> Tensor:
        """Sum `[seq, ...]` over the ranks; return this rank's `[local seq, ...]`."""
        order = self._order()
        held = len(self.starts[0])
        pieces = whole.chunk(len(order))
        numbered = [pieces[order.index(number)] for number in range(len(order))]
        parts = [torch.cat(numbered[first : first + held]) for first in range(0, len(order), held)]
        local = torch.empty_like(parts[0])
        dist.reduce_scatter(local, parts, group=self.group)
        return local


@dataclass(frozen=True)
class Blocks:
    """The settings that all blocks of one call share.

    Args:
        starts: positions at which the pieces of the queries begin; all pieces have the same length.
        scale: factor on the scores before the softmax.
        reach: how many earlier tokens a query sees; None for all of them.
        dropout: probability to drop an attention weight.
        shards: how keys and values are spread over ranks; None if this process has all of them.
        documents: documents of the whole rows that do not see each other; None if a row is one text.
    """

    starts: list[int]
    scale: float
    reach: int | None = None
    dropout: float = 0.0
    shards: Shards | None = None
    documents: RowDocuments | None = None


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks) -> Tensor:
    """softmax(q k^T * scale) v over the keys that each query may see.

    Args:
        query: `[local seq, batch, heads, head_dim]`.
        key, value: `[seq, batch, groups, head_dim]`, local under `blocks.shards`; heads of a group share them.

    Returns:
        `[local seq, batch, heads, head_dim]`.
    """
    # Drawn once, so that the backward pass drops the same weights.
    seed = int(torch.randint(2**62, ())) if blocks.dropout else 0
    return _Blockwise.apply(query, key, value, blocks, seed)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, seed: int) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.blocks, ctx.seed = blocks, seed
        key, value = _whole(key, value, blocks.shards)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for queries, keys, mask in _split(query, key, blocks):
            inputs = query[queries], key[keys], value[keys]
            out[queries] = _attend(blocks, seed + keys.stop, mask, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        blocks: Blocks = ctx.blocks
        query, key, value = ctx.saved_tensors
        key, value = _whole(key, value, blocks.shards)
        d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        # Many blocks add to the gradient of a key, and low precision would lose the later ones.
        exact = torch.promote_types(key.dtype, torch.float32)
        d_both = torch.zeros(key.shape[0], 2, *key.shape[1:], dtype=exact, device=key.device)
        for queries, keys, mask in _split(query, key, blocks):
            with torch.enable_grad():
                inputs = [t.detach().requires_grad_() for t in (query[queries], key[keys], value[keys])]
                out = _attend(blocks, ctx.seed + keys.stop, mask, *inputs)
            d_query[queries], d_key, d_value = torch.autograd.grad(out, inputs, grad[queries])
            d_both[keys, 0] += d_key
            d_both[keys, 1] += d_value
        if blocks.shards is not None:
            d_both = blocks.shards.reduce(d_both)
        d_key, d_value = d_both.to(key.dtype).unbind(1)
        return d_query, d_key, d_value, None, None


def _whole(key: Tensor, value: Tensor, shards: Shards | None) -> tuple[Tensor, Tensor]:
    if shards is None:
        return key, value
    key, value = shards.gather(torch.stack([key, value], 1)).unbind(1)
    return key, value


def _split(query: Tensor, key: Tensor, blocks: Blocks) -> Iterator[tuple[slice, slice, Tensor]]:
    """Per block: its queries in the local sequence, the keys it sees in the whole one, and its mask.

    The mask is `[rows, keys]`, with documents `[batch, 1, rows, keys]`.
    """
    piece = query.shape[0] // len(blocks.starts)
    sharing = query.shape[2] // key.shape[2]
    width = max(blocks.starts) + piece
    size = min(piece, max(1, _rows(query, width, blocks.reach) // sharing))
    if blocks.reach is not None:
        width = min(width, size + blocks.reach)
    mask = _mask(size, width, blocks.reach, query).repeat_interleave(sharing, 0)
    for index, start in enumerate(blocks.starts):
        for first in range(0, piece, size):
            rows = min(size, piece - first)
            end = start + first + rows
            begin = 0 if blocks.reach is None else max(0, end - rows - blocks.reach)
            if blocks.documents is not None:
                begin = max(begin, int(blocks.documents.starts[:, end - rows : end].min()))
            offset = index * piece + first
            seen = mask[-rows * sharing :, width - (end - begin) :]
            if blocks.documents is not None:
                seen = seen + _other_documents(blocks.documents, end - rows, begin, end, seen)[:, None]
            yield slice(offset, offset + rows), slice(begin, end), seen


def _rows(query: Tensor, width: int, reach: int | None) -> int:
    if not query.is_cuda:
        return ROWS
    seen = width if reach is None else min(width, reach + MOST_ROWS)
    return max(ROWS, min(MOST_ROWS, DEVICE_MASK // seen))


def _mask(size: int, width: int, reach: int | None, like: Tensor) -> Tensor:
    """`[size, width]` for the last `size` queries and the last `width` keys before the same end: 0 or -inf."""
    # Query i of the block has the position of key width - size + i.
    ahead = like.new_full((size, width), float("-inf")).triu_(width - size + 1)
    if reach is None:
        return ahead
    return ahead.add_(like.new_full((size, width), float("-inf")).tril_(width - size - reach - 1))


def _other_documents(documents: RowDocuments, first: int, begin: int, end: int, like: Tensor) -> Tensor:
    """`[batch, rows, keys]`, 0 or -inf: queries `first` .. `end` see no key before their document's start."""
    starts = documents.starts_on_device[:, first:end, None]
    before = torch.arange(begin, end, device=starts.device) < starts
    mask = like.new_zeros(before.shape).masked_fill_(before, float("-inf"))
    return mask.repeat_interleave(like.shape[0] // (end - first), 1)


def _attend(blocks: Blocks, seed: int, mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One block, `[queries, batch, heads, head_dim]`; heads that share a key become rows of one product."""
    length, batch, heads, dim = query.shape
    groups = key.shape[2]
    rows = query.view(length, batch, groups, heads // groups, dim).permute(1, 2, 0, 3, 4)
    with _seeded(seed, query.device) if blocks.dropout else contextlib.nullcontext():
        out = F.scaled_dot_product_attention(
            rows.reshape(batch, groups, -1, dim),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=mask,
            scale=blocks.scale,
            dropout_p=blocks.dropout,
        )
    out = out.reshape(batch, groups, length, heads // groups, dim).permute(2, 0, 1, 3, 4)
    return out.reshape(length, batch, heads, dim)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from `seed` inside the block, and restore the random state afterwards."""
    with torch.random.fork_rng([] if device.index is None else [device.index]):
        torch.manual_seed(seed)
        yield
