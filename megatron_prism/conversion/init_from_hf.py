"""Loads a model's weights from a Hugging Face folder; each rank reads only the rows and columns that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_prism.conversion.gather import local_shards
from megatron_prism.conversion.import_hf import read_rows
from megatron_prism.conversion.torch_dist.layout import all_tensor_slices
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.console import get_logger, is_rank_zero

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
    where = {
        (tensor_slice.key, tensor_slice.layer): (rule, tensor_slice)
        for rule, tensor_slice in all_tensor_slices(architecture)
    }
    for index, pieces in local_shards(models).items():
        rule, tensor_slice = where[index]
        for offset, data, _ in pieces:
            rows = max(0, min(data.shape[0], tensor_slice.rows - offset[0]))
            columns = tuple(slice(o, o + n) for o, n in zip(offset[1:], data.shape[1:], strict=True))
            data[:rows] = read_rows(source, rule, tensor_slice.row + offset[0], rows, columns=columns).to(
                data
            )
            data[rows:] = 0
