"""A model's weights straight from a Hugging Face folder: each rank reads only the rows and columns it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_prism.conversion.gather import local_shards
from megatron_prism.conversion.import_hf import read_rows
from megatron_prism.conversion.torch_dist.layout import all_places
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.console import get_logger, is_rank_zero

logger = get_logger(__name__)


@torch.no_grad()
def load_hf_weights(models: list[Any], architecture: Architecture, folder: Path) -> None:
    """Fill this rank's model chunks from a Hugging Face folder, at any layout.

    Rows that only pad the vocabulary become zero.

    Raises:
        CheckpointError: when the folder is damaged or of another architecture.
    """
    source = HFWeights(folder)
    architecture.require_same(source.architecture, str(folder))
    if is_rank_zero():
        for remark in source.remarks:
            logger.warning(remark)
    where = {(place.key, place.layer): (rule, place) for rule, place in all_places(architecture)}
    for index, pieces in local_shards(models).items():
        rule, place = where[index]
        for offset, data, _ in pieces:
            rows = max(0, min(data.shape[0], place.rows - offset[0]))
            columns = tuple(slice(o, o + n) for o, n in zip(offset[1:], data.shape[1:], strict=True))
            data[:rows] = read_rows(source, rule, place.row + offset[0], rows, columns).to(data)
            data[rows:] = 0
