"""The rules that map Hugging Face tensors to Megatron tensors and back, as data: blocks of rows that move.

Every conversion only moves rows (dimension 0). A layout lists which rows of which Hugging Face tensor are where in
the Megatron tensor. Whole conversions, slices for one rank and streaming all use it. Shapes are `[out, in]`, as
torch's linear layers store them, and always those of the whole model, without parallelism or vocabulary padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from megatron_prism.models.architecture import Architecture

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
ShapeOf = Callable[[Architecture], Shape]


@dataclass(frozen=True)
class RowBlock:
    """`rows` consecutive rows: from `hf_row` of Hugging Face tensor number `part` to `megatron_row`, or back."""

    part: int
    hf_row: int
    megatron_row: int
    rows: int


class Layout(Protocol):
    """The shapes of a rule's Hugging Face tensors, and the positions of their rows in the Megatron tensor."""

    def hf_shapes(self, architecture: Architecture) -> list[Shape]: ...

    def row_blocks(self, architecture: Architecture) -> list[RowBlock]:
        """The blocks in the order of their Megatron rows. Together they cover every row of both sides exactly once."""
        ...


@dataclass(frozen=True)
class Stacked:
    """The Hugging Face tensors one after the other. A single tensor stays unchanged."""

    shapes: tuple[ShapeOf, ...]

    def hf_shapes(self, architecture: Architecture) -> list[Shape]:
        return [shape(architecture) for shape in self.shapes]

    def row_blocks(self, architecture: Architecture) -> list[RowBlock]:
        found, row = [], 0
        for part, shape in enumerate(self.hf_shapes(architecture)):
            found.append(RowBlock(part, 0, row, shape[0]))
            row += shape[0]
        return found


@dataclass(frozen=True)
class GroupedQKV:
    """q, k, v: Megatron keeps the rows of each query group together, [q_0 .. q_(r-1), k, v]."""

    def hf_shapes(self, architecture: Architecture) -> list[Shape]:
        a = architecture
        rows = (a.num_attention_heads, a.num_query_groups, a.num_query_groups)
        return [(heads * a.head_dim, a.hidden_size) for heads in rows]

    def row_blocks(self, architecture: Architecture) -> list[RowBlock]:
        a = architecture
        queries = a.num_attention_heads // a.num_query_groups * a.head_dim
        found, row = [], 0
        for group in range(a.num_query_groups):
            for part, rows in enumerate((queries, a.head_dim, a.head_dim)):
                found.append(RowBlock(part, group * rows, row, rows))
                row += rows
        return found


def one(shape: ShapeOf) -> Stacked:
    """A tensor that is the same on both sides."""
    return Stacked((shape,))


def _inner(a: Architecture) -> int:
    return a.mamba_num_heads * a.mamba_head_dim


def _convolved(a: Architecture) -> int:
    return _inner(a) + 2 * a.mamba_num_groups * a.mamba_state_dim


CONV_KERNEL = 4
NORM = one(lambda a: (a.hidden_size,))
VOCABULARY = one(lambda a: (a.vocab_size, a.hidden_size))
QUERY_KEY_VALUE = GroupedQKV()
ATTENTION_OUTPUT = one(lambda a: (a.hidden_size, a.num_attention_heads * a.head_dim))
MLP_INPUT = one(lambda a: (a.ffn_hidden_size * (2 if a.activation == "swiglu" else 1), a.hidden_size))
GATE_UP = Stacked(((lambda a: (a.ffn_hidden_size, a.hidden_size)),) * 2)
MLP_OUTPUT = one(lambda a: (a.hidden_size, a.ffn_hidden_size))
# Mamba's in_proj rows are z, x, B, C, dt on both sides; the convolution runs over x, B, C.
MAMBA_INPUT = one(lambda a: (_inner(a) + _convolved(a) + a.mamba_num_heads, a.hidden_size))
MAMBA_CONV_WEIGHT = one(lambda a: (_convolved(a), 1, CONV_KERNEL))
MAMBA_CONV_BIAS = one(lambda a: (_convolved(a),))
MAMBA_PER_HEAD = one(lambda a: (a.mamba_num_heads,))
MAMBA_NORM = one(lambda a: (_inner(a),))
MAMBA_OUTPUT = one(lambda a: (a.hidden_size, _inner(a)))


@dataclass(frozen=True)
class Rule:
    """A row of a name table: the Megatron name, the Hugging Face names, and the layout of the rows."""

    megatron: str
    hf: tuple[str, ...]
    layout: Layout

    def in_layer(self, megatron_layer: int, hf_layer: int | None = None) -> Rule:
        """The rule of one layer, for names with `{}`. `hf_layer` is its number in Hugging Face where that differs."""
        number = megatron_layer if hf_layer is None else hf_layer
        hf = tuple(name.format(number) for name in self.hf)
        return Rule(self.megatron.format(megatron_layer), hf, self.layout)

    def megatron_shape(self, architecture: Architecture) -> Shape:
        shapes = self.layout.hf_shapes(architecture)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def to_megatron(self, tensors: Sequence[Tensor], architecture: Architecture) -> Tensor:
        """Whole Hugging Face tensors to the whole Megatron tensor."""
        import torch

        blocks = self.layout.row_blocks(architecture)
        if len(blocks) == 1:
            return tensors[0]
        return torch.cat([tensors[block.part][block.hf_row : block.hf_row + block.rows] for block in blocks])

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> list[Tensor]:
        """The whole Megatron tensor (without vocabulary padding) to its Hugging Face tensors."""
        import torch

        pieces: list[list[Tensor]] = [[] for _ in self.hf]
        for block in self.layout.row_blocks(architecture):
            pieces[block.part].append(tensor[block.megatron_row : block.megatron_row + block.rows])
        return [torch.cat(rows) if len(rows) > 1 else rows[0].contiguous() for rows in pieces]
