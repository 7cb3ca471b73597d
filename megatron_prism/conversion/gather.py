"""The weights of a running model as Hugging Face tensors, sent to rank 0 one parameter at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_prism.conversion.torch_dist.layout import TensorSlice, tensor_slices
from megatron_prism.errors import CheckpointError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import model_state
from megatron_prism.models.families import parameter_map
from megatron_prism.models.mappings import Rule, Shape


@dataclass(frozen=True)
class Shard:
    """A rectangle of a stored tensor (layer axis left out) and the rank that holds it."""

    rank: int
    offset: Shape
    size: Shape
    dtype: torch.dtype


Index = tuple[str, int | None]


def local_shards(models: list[Any]) -> dict[Index, list[tuple[Shape, Tensor, bool]]]:
    """This rank's pieces by checkpoint key and layer: offset in the tensor, data, and whether it is the main copy.

    The data are views of the parameters: writing to them changes the model.
    """
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica

    found: dict[Index, list[tuple[Shape, Tensor, bool]]] = {}
    state = model_state(models)
    apply_factories(state)

    def visit(value: Any) -> None:
        if isinstance(value, ShardedTensor):
            axis = value.prepend_axis_num
            layer = value.global_offset[0] if axis else None
            piece = (
                tuple(value.global_offset[axis:]),
                value.data.detach(),
                is_main_replica(value.replica_id),
            )
            found.setdefault((value.key, layer), []).append(piece)
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, list):
            for item in value:
                visit(item)

    visit(state)
    return found


def gather_hf(
    models: list[Any], architecture: Architecture
) -> tuple[dict[str, torch.dtype], Iterator[tuple[str, Tensor]]] | None:
    """On rank 0: the dtype of every Hugging Face tensor, and an iterator over the tensors. On other ranks: None.

    Every rank must call it. The other ranks send while rank 0 iterates, and rank 0 must iterate to the end.
    """
    mine = local_shards(models)
    table: dict[Index, list[Shard]] = {}
    parts: list[Any] = [None] * dist.get_world_size()
    rank = dist.get_rank()
    described = [
        (index, Shard(rank, offset, tuple(data.shape), data.dtype))
        for index, pieces in mine.items()
        for offset, data, main in pieces
        if main
    ]
    dist.all_gather_object(parts, described)
    for index, shard in (item for part in parts for item in part):
        table.setdefault(index, []).append(shard)
    if rank == 0:
        rules = parameter_map(architecture)
        dtypes = {
            name: _shards(table, tensor_slices(rule, architecture)[0])[0].dtype
            for rule in rules
            for name in rule.hf
        }
        return dtypes, _receive(mine, table, architecture)
    for rule in parameter_map(architecture):
        for tensor_slice in tensor_slices(rule, architecture):
            for shard in _shards(table, tensor_slice):
                if shard.rank == rank:
                    dist.send(_piece(mine, tensor_slice, shard.offset), 0)
    return None


def _receive(
    mine: dict[Index, list[tuple[Shape, Tensor, bool]]],
    table: dict[Index, list[Shard]],
    architecture: Architecture,
) -> Iterator[tuple[str, Tensor]]:
    for rule in parameter_map(architecture):
        tensor = _assemble(rule, mine, table, architecture)
        yield from zip(rule.hf, rule.to_hf(tensor, architecture), strict=True)


def _assemble(
    rule: Rule,
    mine: dict[Index, list[tuple[Shape, Tensor, bool]]],
    table: dict[Index, list[Shard]],
    architecture: Architecture,
) -> Tensor:
    """A whole Megatron parameter in the memory of this process, without the padding rows of the vocabulary."""
    shape = rule.megatron_shape(architecture)
    out: Tensor | None = None
    for tensor_slice in tensor_slices(rule, architecture):
        for shard in _shards(table, tensor_slice):
            if shard.rank == dist.get_rank():
                piece = _piece(mine, tensor_slice, shard.offset)
            else:
                piece = torch.empty(
                    shard.size, dtype=shard.dtype, device=next(iter(mine.values()))[0][1].device
                )
                dist.recv(piece, shard.rank)
            if out is None:
                out = torch.empty(shape, dtype=shard.dtype)
            rows = min(shard.size[0], shape[0] - tensor_slice.row - shard.offset[0])
            if rows > 0:
                first = tensor_slice.row + shard.offset[0]
                columns = (slice(o, o + n) for o, n in zip(shard.offset[1:], shard.size[1:], strict=True))
                out[(slice(first, first + rows), *columns)] = piece[:rows].cpu()
    assert out is not None
    return out


def _shards(table: dict[Index, list[Shard]], tensor_slice: TensorSlice) -> list[Shard]:
    if (tensor_slice.key, tensor_slice.layer) not in table:
        raise CheckpointError(f"the model has no parameter '{tensor_slice.key}' (layer {tensor_slice.layer})")
    return table[tensor_slice.key, tensor_slice.layer]


def _piece(
    mine: dict[Index, list[tuple[Shape, Tensor, bool]]], tensor_slice: TensorSlice, offset: Shape
) -> Tensor:
    for each, data, _ in mine[tensor_slice.key, tensor_slice.layer]:
        if each == offset:
            return data.contiguous()
    raise AssertionError(f"{tensor_slice.key}: no piece at {offset}")
