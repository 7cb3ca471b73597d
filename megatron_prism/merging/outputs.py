"""The output folders of a merge: everything is written first except the tensors, for which space is reserved.

Then one pass over the inputs writes the tensors of all results, so a list of alphas reads the inputs only once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.conversion.hf_folder.writer import MAX_SHARD_BYTES, reserve_folder
from megatron_prism.conversion.torch_dist.plan import plan_checkpoint
from megatron_prism.conversion.torch_dist.writer import Piece, reserve_checkpoint
from megatron_prism.conversion.weights import HFWeights, Weights
from megatron_prism.errors import ConfigError
from megatron_prism.merging.blocks import Block, blocks
from megatron_prism.merging.side_files import SideFiles, write_side_files
from megatron_prism.models.families import hf_shapes, parameter_map
from megatron_prism.models.mappings import Rule
from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT, HF_FILES
from megatron_prism.pipeline.config import one_of

FORMATS = ("hf", "megatron")


@dataclass(frozen=True)
class Rows:
    """Rows `row` .. `row + rows` of a Hugging Face tensor with `width` elements in each row."""

    name: str
    row: int
    rows: int
    width: int


@dataclass(frozen=True)
class WriteTask:
    """Rows that are written one after the other, in `dtype`, to the same reserved space of every result.

    Attributes:
        targets: the reserved space in each result.
    """

    rows: tuple[Rows, ...]
    dtype: torch.dtype
    targets: tuple[FileRange, ...]

    def blocks(self) -> Iterator[Block]:
        out_first = 0
        for each in self.rows:
            yield from blocks(each.name, each.row * each.width, each.rows * each.width, out_first)
            out_first += each.rows * each.width


def output_format(wanted: str | None, first: Weights) -> str:
    """'hf' or 'megatron': the requested format, or that of the first model. A ConfigError for any other name."""
    kind = wanted or ("hf" if isinstance(first, HFWeights) else "megatron")
    one_of(kind, FORMATS, "format")
    return kind


def check_config(kind: str, sources: Sequence[SideFiles], first: Weights) -> None:
    """Raise a ConfigError if the result should be a Hugging Face folder, but no model has a config."""
    if kind == "hf" and any(each.config is None for each in sources):
        raise ConfigError(
            f"format=hf: none of the models has a config and tokenizer ({first.path} has no {HF_FILES}/); use "
            "format=megatron and export the result with a tokenizer"
        )


def preallocate(
    format: str,
    *,
    first: Weights,
    folders: Sequence[Path],
    sources: Sequence[SideFiles],
    dtype: torch.dtype | None = None,
) -> tuple[list[WriteTask], list[str]]:
    """Write the results without the bytes of their tensors, for which space is reserved.

    Args:
        format: 'hf' or 'megatron'.
        first: the model whose dtypes the results keep.
        folders: one for each result, existing and empty.
        sources: for each result, where the files next to the weights come from.
        dtype: of all tensors; None keeps those of `first`.

    Returns:
        The tasks that fill the reserved space, in order; and remarks on the files next to the weights, each once.
    """
    allocate = _preallocate_hf if format == "hf" else _preallocate_megatron
    return allocate(first, folders, sources, dtype)


def _preallocate_hf(
    first: Weights, folders: Sequence[Path], sources: Sequence[SideFiles], dtype: torch.dtype | None
) -> tuple[list[WriteTask], list[str]]:
    shapes = hf_shapes(first.architecture)
    tensors = {name: (dtype or first.dtypes[name], shape) for name, shape in shapes.items()}
    main = next(iter(tensors.values()))[0]
    reserved, remarks = [], []
    for folder, source in zip(folders, sources, strict=True):
        remarks += write_side_files(source, folder, main)
        reserved.append(reserve_folder(folder, tensors, MAX_SHARD_BYTES))
    tasks = [
        WriteTask(
            (Rows(name, 0, shape[0], math.prod(shape[1:])),), kept, tuple(each[name] for each in reserved)
        )
        for name, (kept, shape) in tensors.items()
    ]
    return tasks, list(dict.fromkeys(remarks))


def _preallocate_megatron(
    first: Weights, folders: Sequence[Path], sources: Sequence[SideFiles], dtype: torch.dtype | None
) -> tuple[list[WriteTask], list[str]]:
    planned, pieces = plan_checkpoint(first, dtype)
    contents = {}
    for each in pieces:
        planned[each.tensor_slice.key].pieces[each.offset] = Piece(each.size, [])
        contents[each.tensor_slice.key, each.offset] = _rows(
            first, each.rule, each.tensor_slice.row, each.tensor_slice.rows
        )
    main = dtype or next(iter(first.dtypes.values()))
    reserved, remarks = [], []
    for folder, source in zip(folders, sources, strict=True):
        (folder / CHECKPOINT).mkdir()
        reserved.append(reserve_checkpoint(folder / CHECKPOINT, planned))
        remarks += write_side_files(source, folder / HF_FILES, main)
        source.architecture.save(folder / ARCHITECTURE)
    tasks = [
        WriteTask(contents[key, offset], tensor.dtype, tuple(each[key, offset] for each in reserved))
        for key, tensor in planned.items()
        for offset in tensor.pieces
    ]
    return tasks, list(dict.fromkeys(remarks))


def _rows(first: Weights, rule: Rule, row: int, rows: int) -> tuple[Rows, ...]:
    """Rows `row` .. `row + rows` of a Megatron parameter as rows of Hugging Face tensors, in order."""
    found = []
    for block in rule.layout.row_blocks(first.architecture):
        start, end = max(row, block.megatron_row), min(row + rows, block.megatron_row + block.rows)
        if start < end:
            width = math.prod(first.shapes[rule.hf[block.part]][1:])
            found.append(
                Rows(rule.hf[block.part], block.hf_row + start - block.megatron_row, end - start, width)
            )
    return tuple(found)


def total_bytes(first: Weights, dtype: torch.dtype | None = None) -> int:
    """Bytes of the tensors of one result."""
    return sum(
        math.prod(first.shapes[name]) * (dtype or first.dtypes[name]).itemsize
        for rule in parameter_map(first.architecture)
        for name in rule.hf
    )
