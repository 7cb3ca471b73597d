"""How one Megatron tensor is made of Hugging Face tensors, and back: transforms and table rows.

All tensors are whole (no tensor parallelism). Shapes below: `[out, in]` as stored by torch linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_prism.models.architecture import Architecture


class Transform(Protocol):
    """A bijection between a few Hugging Face tensors and one Megatron tensor."""

    def to_megatron(self, tensors: Sequence[Tensor], architecture: Architecture) -> Tensor: ...

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> list[Tensor]: ...


class Same:
    """One tensor, unchanged."""

    def to_megatron(self, tensors: Sequence[Tensor], architecture: Architecture) -> Tensor:
        return tensors[0]

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> list[Tensor]:
        return [tensor]


class Vocabulary:
    """`[padded_vocab, hidden]` in Megatron; the rows that only pad the vocabulary are not exported."""

    def to_megatron(self, tensors: Sequence[Tensor], architecture: Architecture) -> Tensor:
        return tensors[0]

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> list[Tensor]:
        return [tensor[: architecture.vocab_size].contiguous()]


class QKV:
    """q, k, v rows, interleaved in Megatron per query group: [q_0 .. q_(r-1), k, v] for each group."""

    def to_megatron(self, tensors: Sequence[Tensor], architecture: Architecture) -> Tensor:
        groups, head_dim = architecture.num_query_groups, architecture.head_dim
        parts = [tensor.reshape(groups, -1, head_dim, *tensor.shape[1:]) for tensor in tensors]
        return torch.cat(parts, 1).flatten(0, 2)

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> list[Tensor]:
        groups, head_dim = architecture.num_query_groups, architecture.head_dim
        queries = architecture.num_attention_heads // groups
        rows = tensor.reshape(groups, queries + 2, head_dim, *tensor.shape[1:])
        return [part.flatten(0, 2).contiguous() for part in rows.split([queries, 1, 1], 1)]


class GateUp:
    """gate and up projections, stacked in Megatron as [gate; up]."""

    def to_megatron(self, tensors: Sequence[Tensor], architecture: Architecture) -> Tensor:
        return torch.cat(list(tensors), 0)

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> list[Tensor]:
        return [part.contiguous() for part in tensor.chunk(2, 0)]


SAME, VOCABULARY, QUERY_KEY_VALUE, GATE_UP = Same(), Vocabulary(), QKV(), GateUp()


@dataclass(frozen=True)
class Rule:
    """A row of a mapping table: the Megatron name, the Hugging Face names, and the transform between them."""

    megatron: str
    hf: tuple[str, ...]
    transform: Transform = SAME

    def at(self, megatron_prefix: str, hf_prefix: str) -> Rule:
        """The same row under a layer's prefixes."""
        return Rule(
            megatron_prefix + self.megatron, tuple(hf_prefix + name for name in self.hf), self.transform
        )
