"""Core attention on torch's scaled_dot_product_attention: causal or windowed, grouped queries, KV cache, context
parallelism.

Under context parallelism each rank holds two chunks of the sequence (r and 2*cp-1-r, so that causal work is even) and
gathers keys and values over the ranks. Only a full causal square is computed by torch at once. Everything else
is computed by `blockwise.py`, which needs no mask of [queries, keys].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn import functional as F

from megatron_prism.models.layers.blockwise import Blocks, Shards, blockwise_attention
from megatron_prism.models.layers.decode_cache import Branches, DecodeCache, Prefill
from megatron_prism.models.layers.rotary import rotate
from megatron_prism.models.layers.row_documents import RowDocuments, documents_of
from megatron_prism.models.layers.wide_attention import applies_to, wide_attention


def chunk_positions(local_length: int, rank: int, size: int, device: torch.device | None) -> Tensor:
    """Global positions of the tokens that a context-parallel rank holds: chunks `rank` and `2*size-1-rank`."""
    chunk = local_length // 2
    first = torch.arange(rank * chunk, (rank + 1) * chunk, device=device)
    last = torch.arange((2 * size - 1 - rank) * chunk, (2 * size - rank) * chunk, device=device)
    return torch.cat([first, last])


def _rows_apart(x: Tensor) -> Tensor:
    """The same `[seq, batch, ...]`, with each row of the batch together in memory on a CPU.

    torch's attention kernel for CPUs reads the tokens of one row. With those of other rows in between, it takes a
    fifth longer (16 rows of 256 tokens, 4 heads of 32 channels, fp32: 36 ms and 29 ms, with the backward pass).
    """
    return x.transpose(0, 1).contiguous().transpose(0, 1) if x.is_cpu else x.contiguous()


class SDPACoreAttention(MegatronModule):
    """softmax(q k^T * scale) v for q `[seq, batch, heads, head_dim]` and k, v `[seq, batch, groups, head_dim]`."""

    # Rotary angles `[seq, 1, 1, head_dim]` during a call (rotary.py).
    angles: Tensor | None = None

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        scale = softmax_scale if softmax_scale is not None else config.softmax_scale
        self.scale = scale if scale is not None else 1.0 / math.sqrt(config.kv_channels)
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        group = getattr(pg_collection, "cp", None)
        self.cp_group = group if group is not None else parallel_state.get_context_parallel_group()
        # How many earlier tokens a query sees; Megatron's window_size is (left, right).
        self.reach = None if config.window_size is None else config.window_size[0]
        # The texts of a generation batch (decode_cache.py).
        self.decode_cache: DecodeCache | None = None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Returns `[seq, batch, heads * head_dim]`. With a KV cache, key and value are longer than query.

        Args:
            packed_seq_params: the documents of the rows, which do not see each other (row_documents.py).
        """
        if self.angles is not None:
            query, key = rotate(query, self.angles), rotate(key, self.angles)
        if self.decode_cache is not None:
            return self._generate(self.decode_cache, query, key, value)
        # Copies, because these are views of the projection's output, which would be kept for backward with them.
        key, value = _rows_apart(key), _rows_apart(value)
        if query.is_cpu:
            query = _rows_apart(query)
        documents = documents_of(packed_seq_params)
        if documents is None or self.cp_group.size() > 1:
            return self._attend(query, key, value, documents)
        return documents.apply(self._attend, query, key, value)

    def _generate(self, cache: DecodeCache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        step = cache.step
        if isinstance(step, Prefill):
            query, key, value = (step.segments.unpack(tensor) for tensor in (query, key, value))
            if step.slots is not None:
                keys, values = cache.keys_and_values(self, key)
                longest, texts = key.shape[0], len(step.slots)
                # The cache past the end of a shorter prompt is overwritten before it is read.
                keys[step.slots, :, :longest] = key[:, :texts].permute(1, 2, 0, 3)
                values[step.slots, :, :longest] = value[:, :texts].permute(1, 2, 0, 3)
            return step.segments.repack(self._attend(query, key, value))
        assert step is not None
        keys, values = cache.keys_and_values(self, key)
        if isinstance(step, Branches):
            q, *new = (step.segments.unpack(tensor).permute(1, 2, 0, 3) for tensor in (query, key, value))
            k, v = (
                torch.cat([stored[step.slots, :, : step.longest], own], 2)
                for stored, own in zip((keys, values), new, strict=True)
            )
            grouped_queries = k.shape[1] != q.shape[1]
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=step.mask(self.reach), scale=self.scale, enable_gqa=grouped_queries
            )
            return step.segments.repack(out.permute(2, 0, 1, 3).flatten(2))
        count, groups = step.count, key.shape[2]
        rows = torch.arange(count, device=key.device)
        keys[rows, :, step.positions], values[rows, :, step.positions] = key[:, 0], value[:, 0]
        # Matrix products over the query heads that share a key. torch's fused attention takes three times as long
        # on a CPU for so few queries (n=256, 130 columns: 1.4 ms and 0.45 ms).
        grouped = query.view(count, groups, -1, query.shape[-1])
        scores = (grouped @ keys[:count, :, : step.length].transpose(-1, -2)).float()
        weights = torch.softmax(scores * self.scale + step.bias(self.reach), -1).to(value.dtype)
        out = weights @ values[:count, :, : step.length]
        return out.reshape(count, 1, -1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, documents: RowDocuments | None = None
    ) -> Tensor:
        length, reach = query.shape[0], self.reach
        dropout = self.dropout if self.training else 0.0
        blocks: Blocks | None = None
        # While generating, every context-parallel rank holds whole texts.
        if self.cp_group.size() > 1 and self.decode_cache is None:
            shards = self._shards(length)
            blocks = Blocks(
                shards.starts[self.cp_group.rank()], self.scale, reach, dropout, shards, documents
            )
        elif 1 < length != key.shape[0] or (reach is not None and key.shape[0] > reach + 1):
            # With a KV cache the queries are the last positions.
            blocks = Blocks([key.shape[0] - length], self.scale, reach, dropout)
        if blocks is not None:
            return blockwise_attention(query, key, value, blocks).flatten(2)
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        if length > 1 and applies_to(q, dropout):
            out = wide_attention(q, k, v, self.scale)
            return out.permute(2, 0, 1, 3).reshape(length, query.shape[1], -1)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            # A single query at the end of the cache sees every key, so only a full square is causal.
            is_causal=length > 1,
            scale=self.scale,
            dropout_p=dropout,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        return out.permute(2, 0, 1, 3).reshape(length, query.shape[1], -1)

    def _shards(self, length: int) -> Shards:
        """The first positions of the two chunks of every context-parallel rank."""
        size = self.cp_group.size()
        positions = [chunk_positions(length, rank, size, None) for rank in range(size)]
        return Shards(self.cp_group, [[int(p[0]), int(p[length // 2])] for p in positions])
