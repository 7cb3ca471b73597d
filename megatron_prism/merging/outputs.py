"""The folders a merge makes, written but for the bytes of their tensors, and what belongs into each hole.

Every result is laid out first and then filled in one pass over the inputs, so that a list of results reads them once.
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
    """'hf' or 'megatron': the one asked for, or that of the first model; a ConfigError for another word."""
    kind = wanted or ("hf" if isinstance(first, HFWeights) else "megatron")
    one_of(kind, FORMATS, "format")
    return kind


def check_config(kind: str, sources: Sequence[SideFiles], first: Weights) -> None:
    """Raise a ConfigError where a Hugging Face folder is asked for and no model came with a config."""
    if kind == "hf" and any(each.config is None for each in sources):
        raise ConfigError(
            f"format=hf: {first.path} has no {HF_FILES}/ with a config and tokenizer, and no other model has; merge to "
            "'megatron' and export the result with a tokenizer"
        )


def lay_out(
    kind: str,
    first: Weights,
    folders: Sequence[Path],
    sources: Sequence[SideFiles],
    dtype: torch.dtype | None = None,
) -> tuple[list[Filling], list[str]]:
    """Write everything of the results but the bytes of their tensors.

    Args:
        first: the model whose dtypes the results keep.
        folders, sources: existing and empty, one for each result; where its other files come from.
        dtype: of all tensors; None keeps those of `first`.

    Returns:
        What is to be filled in, in order; and remarks on the files beside the weights, each once.
    """
    lay = _lay_out_hf if kind == "hf" else _lay_out_megatron
    return lay(first, folders, sources, dtype)


def _lay_out_hf(
    first: Weights, folders: Sequence[Path], sources: Sequence[SideFiles], dtype: torch.dtype | None
) -> tuple[list[Filling], list[str]]:
    shapes = hf_shapes(first.architecture)
    tensors = {name: (dtype or first.dtypes[name], shape) for name, shape in shapes.items()}
    main = next(iter(tensors.values()))[0]
    holes, said = [], []
    for folder, source in zip(folders, sources, strict=True):
        said += write_side_files(source, folder, main)
        holes.append(reserve_folder(folder, tensors, MAX_SHARD_BYTES))
    fillings = [
        Filling((Rows(name, 0, shape[0], math.prod(shape[1:])),), kept, tuple(each[name] for each in holes))
        for name, (kept, shape) in tensors.items()
    ]
    return fillings, list(dict.fromkeys(said))


def _lay_out_megatron(
    first: Weights, folders: Sequence[Path], sources: Sequence[SideFiles], dtype: torch.dtype | None
) -> tuple[list[Filling], list[str]]:
    planned, pieces = plan_checkpoint(first, dtype)
    contents = {}
    for each in pieces:
        planned[each.place.key].pieces[each.offset] = Piece(each.size, [])
        contents[each.place.key, each.offset] = _rows(first, each.rule, each.place.row, each.place.rows)
    main = dtype or next(iter(first.dtypes.values()))
    holes, said = [], []
    for folder, source in zip(folders, sources, strict=True):
        (folder / CHECKPOINT).mkdir()
        holes.append(reserve_checkpoint(folder / CHECKPOINT, planned))
        said += write_side_files(source, folder / HF_FILES, main)
        source.architecture.save(folder / ARCHITECTURE)
    fillings = [
        Filling(contents[key, offset], tensor.dtype, tuple(each[key, offset] for each in holes))
        for key, tensor in planned.items()
        for offset in tensor.pieces
    ]
    return fillings, list(dict.fromkeys(said))


def _rows(first: Weights, rule: Rule, row: int, rows: int) -> tuple[Rows, ...]:
    """Rows `row` .. `row + rows` of a Megatron parameter as rows of Hugging Face tensors, in order."""
    found = []
    for run in rule.layout.runs(first.architecture):
        start, end = max(row, run.megatron_row), min(row + rows, run.megatron_row + run.rows)
        if start < end:
            width = math.prod(first.shapes[rule.hf[run.part]][1:])
            found.append(Rows(rule.hf[run.part], run.hf_row + start - run.megatron_row, end - start, width))
    return tuple(found)


def total_bytes(first: Weights, dtype: torch.dtype | None = None) -> int:
    """Bytes of the tensors of one result."""
    return sum(
        math.prod(first.shapes[name]) * (dtype or first.dtypes[name]).itemsize
        for rule in parameter_map(first.architecture)
        for name in rule.hf
    )
