"""Fills a model with weights: from a Hugging Face folder, of which each rank reads only what it holds, or any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from megatron_prism.conversion.gather import local_shards
from megatron_prism.conversion.import_hf import read_rows
from megatron_prism.conversion.torch_dist.layout import all_tensor_slices
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.mappings import Rule
from megatron_prism.platform.console import get_logger, is_rank_zero

ReadRows: TypeAlias = Callable[[Rule, int, int, tuple[slice, ...]], Tensor]
logger = get_logger(__name__)


@torch.no_grad()
def load_hf_weights(models: list[Any], architecture: Architecture, folder: Path) -> None:
    """Fill this rank's model chunks from a Hugging Face folder, with any parallel layout.

    Rows that only pad the vocabulary become zero.

    Raises:
        CheckpointError: if the folder is damaged or has another architecture.
    """
    source = HFWeights(folder)
    architecture.require_same(source.architecture, str(folder))
    if is_rank_zero():
        for remark in source.remarks:
            logger.warning(remark)
    fill_weights(
        models,
        architecture,
        lambda rule, row, rows, columns: read_rows(source, rule, row, rows, columns=columns),
    )


@torch.no_grad()
def fill_weights(models: list[Any], architecture: Architecture, read: ReadRows) -> None:
    """Fill this rank's model chunks, parameter after parameter, with what `read` gives.

    Rows that only pad the vocabulary become zero.

    Args:
        read: takes a rule of the parameter map, the first row and the number of rows of the Megatron parameter, and
            the part of each other dimension; returns these rows. All rows of a parameter are asked for in a row.
    """
    shards = local_shards(models)
    for rule, tensor_slice in all_tensor_slices(architecture):
        for offset, data, _ in shards.pop((tensor_slice.key, tensor_slice.layer), ()):
            rows = max(0, min(data.shape[0], tensor_slice.rows - offset[0]))
            columns = tuple(slice(o, o + n) for o, n in zip(offset[1:], data.shape[1:], strict=True))
            data[:rows] = read(rule, tensor_slice.row + offset[0], rows, columns).to(data)
            data[rows:] = 0
    assert not shards, f"the parameter map knows every parameter, but not {next(iter(shards))}"
