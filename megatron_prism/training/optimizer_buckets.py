"""Where each piece of each parameter lies in the distributed optimizer's buffers, so that any layout can read them.

Megatron's format 'dp_reshardable' stores the buffers as they are: one row of numbers per bucket, for each pair of a
tensor- and a pipeline-parallel rank. It can be loaded with the same buckets only. With this index, which is saved next
to it, a rank of another layout finds the numbers of its parameters (`optimizer_reshard.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.models.checkpoint_io import DP_RESHARDABLE, FULLY_RESHARDABLE

INDEX_FILES = "optimizer_pieces_*.json"


@dataclass(frozen=True)
class Piece:
    """A box of a global tensor that lies in a row of a bucket, from `start` on.

    Attributes:
        bucket: the key of the bucket, without the name of the state ('param', 'exp_avg', 'exp_avg_sq').
        bucket_size: numbers in the bucket.
        key: the key of the global tensor.
        offset, shape: of the box, with an axis of size 1 for the layer where Megatron stacks layers.
    """

    bucket: str
    bucket_size: int
    start: int
    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def distributed_parts(optimizer: Any) -> list[Any]:
    """The distributed optimizers in `optimizer`."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    return [each for each in optimizer.chained_optimizers if isinstance(each, DistributedOptimizer)]


def possible_format(optimizer: Any, wanted: str, pieces: list[Piece] | None) -> str:
    """The format to save in: `wanted`, or 'fully_reshardable' if a rank cannot use it. All ranks get the same answer.

    For 'dp_reshardable' all parts must be distributed, and every rank must own parameters in every bucket
    (distrib_optimizer.py:1600), which fails for tiny models only.
    """
    import torch.distributed as dist

    if wanted != DP_RESHARDABLE:
        return wanted
    parts = distributed_parts(optimizer)
    ranges = [
        bucket
        for part in parts
        for buffer in part.gbuf_ranges
        for buckets in buffer.values()
        for bucket in buckets
    ]
    mine = (
        pieces is not None
        # A pipeline stage without trained parameters has no buckets.
        and bool(ranges)
        and all(bucket["param_map"] for bucket in ranges)
    )
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return DP_RESHARDABLE if all(found) else FULLY_RESHARDABLE


def bucket_hash(optimizer: Any) -> str:
    """A hash of the sizes of the buckets of all ranks; all ranks call this and get the same one."""
    import torch.distributed as dist

    mine = [
        (part.data_parallel_group_idx, str(part.per_bucket_numel_unpadded))
        for part in distributed_parts(optimizer)
    ]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    every = sorted({entry for entries in found for entry in entries})
    return hashlib.sha256(repr(every).encode()).hexdigest()[:16]


def parameter_pieces(
    sharded_model: Any,
) -> dict[Any, list[tuple[int, str, tuple[int, ...], tuple[int, ...]]]]:
    """For each parameter the boxes of global tensors that it consists of: (start in the parameter, key, offset, shape).

    Raises:
        ValueError: if a box is not a row of numbers of its parameter.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    found = {}
    for base in nested_values(sharded_model):
        if not isinstance(base, ShardedTensor | ShardedTensorFactory):
            continue
        built = nested_values(base.build()) if isinstance(base, ShardedTensorFactory) else [base]
        boxes = []
        for tensor in built:
            whole, part = base.data, tensor.data
            if (
                not part.is_contiguous()
                or part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()
            ):
                raise ValueError(f"{tensor.key}: not a row of its parameter")
            start = part.storage_offset() - whole.storage_offset()
            shape = (1,) * tensor.prepend_axis_num + tuple(tensor.local_shape)
            boxes.append((start, tensor.key, tuple(tensor.global_offset), shape))
        found[base.data] = boxes
    return found


def bucket_pieces(optimizer: Any, sharded_model: Any) -> list[Piece] | None:
    """The pieces in the buckets of this tensor- and pipeline-parallel rank; None if they cannot be described."""
    if len(distributed_parts(optimizer)) != len(optimizer.chained_optimizers):
        return None
    try:
        boxes = parameter_pieces(sharded_model)
    except ValueError:
        return None
    pieces = []
    for prefix, part in _prefixed_parts(optimizer):
        for index, buffer in enumerate(part.buffers):
            (dtype,) = part.gbuf_ranges[index]
            for parameter, (start, _, bucket) in buffer.param_index_map.items():
                key = (
                    f"{prefix}optimizer.distributed.dp_group_idx_{part.data_parallel_group_idx}"
                    f".gbuf_idx_{index}.dtype_{dtype}.bucket_idx_{bucket}"
                )
                size, first = buffer.buckets[bucket].numel_unpadded, start - buffer.buckets[bucket].offset
                for begin, name, offset, shape in boxes[parameter]:
                    pieces.append(Piece(key, size, first + begin, name, offset, shape))
    return pieces


def group_keys(optimizer: Any) -> list[str]:
    """The keys under which the parameter groups of this rank's optimizers are saved."""
    return [
        f"{prefix}optimizer.distributed.dp_group_idx_{part.data_parallel_group_idx}.optimizer"
        for prefix, part in _prefixed_parts(optimizer)
    ]


def write_index(optimizer: Any, pieces: list[Piece], folder: Path) -> None:
    """Write the index of this tensor- and pipeline-parallel rank, if this is its first data-parallel rank."""
    part = distributed_parts(optimizer)[0]
    if part.data_parallel_group.rank() == 0 and part.distributed_optimizer_instance_id == 0:
        sizes = {piece.bucket: piece.bucket_size for piece in pieces}
        rows = [[piece.bucket, piece.start, piece.key, piece.offset, piece.shape] for piece in pieces]
        content = {"groups": group_keys(optimizer), "buckets": sizes, "pieces": rows}
        name = INDEX_FILES.replace("*", str(part.data_parallel_group_idx))
        (folder / name).write_text(json.dumps(content))


def read_index(folder: Path) -> tuple[list[str], list[Piece]]:
    """The keys of all parameter groups, and all pieces; a piece that several ranks have is listed once."""
    groups: list[str] = []
    pieces: dict[tuple[str, tuple[int, ...]], Piece] = {}
    for path in sorted(folder.glob(INDEX_FILES)):
        content = json.loads(path.read_text())
        groups += content["groups"]
        for bucket, start, key, offset, shape in content["pieces"]:
            piece = Piece(bucket, content["buckets"][bucket], start, key, tuple(offset), tuple(shape))
            pieces.setdefault((key, piece.offset), piece)
    return groups, list(pieces.values())


def _prefixed_parts(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """The distributed optimizers with the prefix that upstream gives their keys (optimizer.py:1203)."""
    chained = optimizer.chained_optimizers
    for index, part in enumerate(chained):
        yield f"chained_{index}." if len(chained) > 1 else "", part
