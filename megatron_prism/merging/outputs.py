"""The folders a merge makes, written but for the bytes of their tensors, and what belongs into each hole.

Every result is laid out first and then filled in one pass over the inputs, so that a list of results reads them once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_prism.conversion.dist_plan import plan_checkpoint
from megatron_prism.conversion.dist_write import Piece, reserve_checkpoint
from megatron_prism.conversion.export_hf import write_side_files
from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.conversion.model_folder import (
    ARCHITECTURE,
    CHECKPOINT,
    HF_FILES,
    HFWeights,
    Weights,
    carry_files,
)
from megatron_prism.conversion.safetensors_io import MAX_SHARD_BYTES, reserve_folder
from megatron_prism.errors import ConfigError
from megatron_prism.merging.blocks import Block, blocks
from megatron_prism.models.families import hf_shapes, parameter_map
from megatron_prism.models.mappings import Rule
from megatron_prism.pipeline.config import one_of

FORMATS = ("hf", "megatron")


@dataclass(frozen=True)
class Rows:
    """Rows `row` .. `row + rows` of a Hugging Face tensor of `width` elements a row."""

    name: str
    row: int
    rows: int
    width: int


@dataclass(frozen=True)
class Filling:
    """What belongs, one after the other and in `dtype`, into the same hole of every result."""

    content: tuple[Rows, ...]
    dtype: torch.dtype
    holes: tuple[FileRange, ...]

    def blocks(self) -> Iterator[Block]:
        place = 0
        for each in self.content:
            yield from blocks(each.name, each.row * each.width, each.rows * each.width, place)
            place += each.rows * each.width


def output_format(wanted: str | None, first: Weights) -> str:
    """'hf' or 'megatron': the one asked for, or that of the first model.

    Raises:
        ConfigError: for another word, or a Hugging Face folder of a model that came without its config and tokenizer.
    """
    kind = wanted or ("hf" if isinstance(first, HFWeights) else "megatron")
    one_of(kind, FORMATS, "format")
    if kind == "hf" and first.files is None:
        raise ConfigError(
            f"format=hf: {first.path} has no {HF_FILES}/ with a config and tokenizer; merge to 'megatron' and export "
            "the result with a tokenizer"
        )
    return kind


def lay_out(kind: str, first: Weights, folders: Sequence[Path]) -> list[Filling]:
    """Write everything of the results but the bytes of their tensors; return what is to be filled in, in order.

    Args:
        first: the model whose dtypes, config and tokenizer the results keep.
        folders: existing and empty, one for each result.
    """
    return _lay_out_hf(first, folders) if kind == "hf" else _lay_out_megatron(first, folders)


def _lay_out_hf(first: Weights, folders: Sequence[Path]) -> list[Filling]:
    shapes = hf_shapes(first.architecture)
    tensors = {name: (first.dtypes[name], shape) for name, shape in shapes.items()}
    holes = []
    for folder in folders:
        if isinstance(first, HFWeights):
            carry_files(first.path, folder)
        else:
            main = next(iter(tensors.values()))[0]
            write_side_files(folder, first.architecture, first.files, None, main)
        holes.append(reserve_folder(folder, tensors, MAX_SHARD_BYTES))
    return [
        Filling((Rows(name, 0, shape[0], math.prod(shape[1:])),), dtype, tuple(each[name] for each in holes))
        for name, (dtype, shape) in tensors.items()
    ]


def _lay_out_megatron(first: Weights, folders: Sequence[Path]) -> list[Filling]:
    planned, pieces = plan_checkpoint(first)
    contents = {}
    for each in pieces:
        planned[each.place.key].pieces[each.offset] = Piece(each.size, [])
        contents[each.place.key, each.offset] = _rows(first, each.rule, each.place.row, each.place.rows)
    holes = []
    for folder in folders:
        (folder / CHECKPOINT).mkdir()
        holes.append(reserve_checkpoint(folder / CHECKPOINT, planned))
        if first.files is not None:
            carry_files(first.files, folder / HF_FILES)
        first.architecture.save(folder / ARCHITECTURE)
    return [
        Filling(contents[key, offset], tensor.dtype, tuple(each[key, offset] for each in holes))
        for key, tensor in planned.items()
        for offset in tensor.pieces
    ]


def _rows(first: Weights, rule: Rule, row: int, rows: int) -> tuple[Rows, ...]:
    """Rows `row` .. `row + rows` of a Megatron parameter as rows of Hugging Face tensors, in order."""
    found = []
    for run in rule.layout.runs(first.architecture):
        start, end = max(row, run.megatron_row), min(row + rows, run.megatron_row + run.rows)
        if start < end:
            width = math.prod(first.shapes[rule.hf[run.part]][1:])
            found.append(Rows(rule.hf[run.part], run.hf_row + start - run.megatron_row, end - start, width))
    return tuple(found)


def total_bytes(first: Weights) -> int:
    """Bytes of the tensors of one result."""
    return sum(
        math.prod(first.shapes[name]) * first.dtypes[name].itemsize
        for rule in parameter_map(first.architecture)
        for name in rule.hf
    )
