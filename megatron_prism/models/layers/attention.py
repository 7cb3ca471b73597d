"""Core attention on torch's scaled_dot_product_attention: causal or windowed, grouped queries, KV cache, context
parallelism.

Under context parallelism each rank holds two chunks of the sequence (r and 2*cp-1-r, so that causal work is even);
keys and values are gathered over the ranks and a mask built from the true positions keeps attention causal.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn import functional as F


class _GatherSequence(torch.autograd.Function):
    """All-gather along dimension 0; backward sums the gradient over the ranks and keeps this rank's slice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(group.size())]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad.chunk(ctx.group.size(), 0)[ctx.group.rank()].contiguous(), None


def chunk_positions(local_length: int, rank: int, size: int, device: torch.device) -> Tensor:
    """Global positions of the tokens a context-parallel rank holds: chunks `rank` and `2*size-1-rank`."""
    chunk = local_length // 2
    first = torch.arange(rank * chunk, (rank + 1) * chunk, device=device)
    last = torch.arange((2 * size - 1 - rank) * chunk, (2 * size - rank) * chunk, device=device)
    return torch.cat([first, last])


class SDPACoreAttention(MegatronModule):
    """softmax(q k^T * scale) v for q `[seq, batch, heads, head_dim]` and k, v `[seq, batch, groups, head_dim]`."""

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
        # How far back a query sees, itself not counted; Megatron's window_size is (left, right).
        self.reach = None if config.window_size is None else config.window_size[0]

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
        """Returns `[seq, batch, heads * head_dim]`. With a KV cache, key and value are longer than query."""
        length, cp = query.shape[0], self.cp_group.size()
        mask: Tensor | None = None
        if cp > 1:
            query_positions = chunk_positions(length, self.cp_group.rank(), cp, query.device)
            key_positions = torch.cat([chunk_positions(length, r, cp, query.device) for r in range(cp)])
            key = _GatherSequence.apply(key, self.cp_group)
            value = _GatherSequence.apply(value, self.cp_group)
            mask = self._visible(query_positions, key_positions)
        elif 1 < length != key.shape[0] or (self.reach is not None and key.shape[0] > self.reach + 1):
            # With a KV cache the queries are the last positions.
            key_positions = torch.arange(key.shape[0], device=query.device)
            mask = self._visible(key_positions[-length:], key_positions)
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            # A single query at the end of the cache sees every key, so only a full square is causal.
            is_causal=mask is None and length > 1,
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        return out.permute(2, 0, 1, 3).reshape(length, query.shape[1], -1)

    def _visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """`[queries, keys]`, true where a query may look: not ahead, and not further back than the window."""
        distance = query_positions[:, None] - key_positions[None]
        return distance >= 0 if self.reach is None else (distance >= 0) & (distance <= self.reach)
