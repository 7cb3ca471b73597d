"""Converts a Hugging Face folder to a Megatron folder, without building a model.

If the dtype stays, no tensor is read: the kernel copies the bytes. The result is a `torch_dist` checkpoint that loads
with any parallel layout, and the files that came with the weights.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.conversion.side_files.carry import carry_files
from megatron_prism.conversion.side_files.token_ids import disagreements
from megatron_prism.conversion.torch_dist.layout import TensorSlice
from megatron_prism.conversion.torch_dist.plan import plan_checkpoint
from megatron_prism.conversion.torch_dist.reader import quick_collection
from megatron_prism.conversion.torch_dist.writer import Piece, write_checkpoint
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.models.families import parameter_count
from megatron_prism.models.mappings import Rule
from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT, HF_FILES


def import_checkpoint(
    hf_folder: Path,
    out: Path,
    dtype: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, Any]:
    """Write `out/architecture.json`, `out/checkpoint` and `out/hf` from a Hugging Face folder.

    Args:
        out: an existing folder; the caller moves it to its final name.
        dtype: of the checkpoint; None keeps the dtype of each tensor.
        progress: called with the size of each piece that was read.

    Returns:
        Metrics: parameters, tensors, bytes of the checkpoint's weights, and remarks on the weights and on the files
            next to them.
    """
    source = HFWeights(hf_folder)
    architecture = source.architecture
    # Done first, so that an unreadable file is found before the long copy of the weights.
    remarks = source.remarks + carry_files(source.path, out / HF_FILES)
    remarks += disagreements(source.path, architecture.vocab_size)
    tensors, pieces = plan_checkpoint(source, dtype)
    for each in pieces:
        content = (
            _ranges(source, each.rule, each.tensor_slice)
            if dtype is None
            else _maker(source, each.rule, each.tensor_slice, dtype=dtype, size=each.size)
        )
        tensors[each.tensor_slice.key].pieces[each.offset] = Piece(each.size, content)
    (out / CHECKPOINT).mkdir()
    with quick_collection():
        write_checkpoint(out / CHECKPOINT, tensors, progress)
    architecture.save(out / ARCHITECTURE)
    return {
        "parameters": parameter_count(architecture),
        "tensors": len(source.stored),
        "bytes": sum(stored.nbytes for stored in source.stored.values()),
        "remarks": remarks,
    }


def _ranges(source: HFWeights, rule: Rule, tensor_slice: TensorSlice) -> list[FileRange]:
    """The ranges of a piece in the Hugging Face files, in Megatron's order."""
    found = []
    for block in rule.layout.row_blocks(source.architecture):
        first = max(tensor_slice.row, block.megatron_row)
        last = min(tensor_slice.row + tensor_slice.rows, block.megatron_row + block.rows)
        if first < last:
            row = block.hf_row + first - block.megatron_row
            found.append(source.range(rule.hf[block.part], row, last - first))
    return found


def _maker(
    source: HFWeights,
    rule: Rule,
    tensor_slice: TensorSlice,
    *,
    dtype: torch.dtype,
    size: tuple[int, ...],
) -> Callable[[], Tensor]:
    """A function that reads and converts a piece. It is called only when the piece is written."""

    def make() -> Tensor:
        # torch.save leaves the storage of the previous piece in a reference cycle.
        gc.collect()
        return read_rows(source, rule, tensor_slice.row, tensor_slice.rows).to(dtype).view(size)

    return make


def read_rows(
    source: HFWeights, rule: Rule, row: int, rows: int, *, columns: tuple[slice, ...] = ()
) -> Tensor:
    """Rows `row` .. `row + rows` of a Megatron parameter, read from the Hugging Face tensors.

    Args:
        columns: the part of each other dimension; all of it by default. Only a matrix can be cut along its columns.

    Returns:
        The rows in the dtype of the tensors. If the dtypes differ, in the smallest that holds all their values.
    """
    shape = rule.megatron_shape(source.architecture)[1:]
    if columns:
        shape = tuple(part.stop - part.start for part in columns)
    kinds = {name: source.stored[name].dtype for name in rule.hf}
    dtype = functools.reduce(torch.promote_types, kinds.values())
    out = torch.empty((rows, *shape), dtype=dtype)
    for block in rule.layout.row_blocks(source.architecture):
        first, last = max(row, block.megatron_row), min(row + rows, block.megatron_row + block.rows)
        if first < last:
            name, part = rule.hf[block.part], out[first - row : last - row]
            target = part if kinds[name] is dtype else torch.empty_like(part, dtype=kinds[name])
            source.read(
                name, block.hf_row + first - block.megatron_row, target, columns[0].start if columns else 0
            )
            if target is not part:
                part.copy_(target)
    return out
