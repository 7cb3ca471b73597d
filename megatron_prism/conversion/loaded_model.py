"""A Megatron model with the weights of a folder of either kind; a Hugging Face folder needs no converted copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prism.conversion.init_from_hf import load_hf_weights
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import load_weights
from megatron_prism.models.model_folder import ARCHITECTURE, CHECKPOINT, is_megatron

if TYPE_CHECKING:
    import torch

    from megatron_prism.platform.process_groups import ParallelConfig


def architecture_of(folder: Path) -> Architecture:
    """The architecture of a Megatron or Hugging Face folder.

    Raises:
        CheckpointError: if the folder is damaged.
        ConfigError: for a Hugging Face model that Megatron cannot build.
    """
    return Architecture.load(folder / ARCHITECTURE) if is_megatron(folder) else HFWeights(folder).architecture


def load_model(
    folder: Path, architecture: Architecture, dtype: torch.dtype, parallel: ParallelConfig | None = None
) -> Any:
    """This rank's model of the torch backend, with the folder's weights. Needs a running session."""
    model = build_model(architecture, dtype, parallel, backend="torch", initialize=False)
    if is_megatron(folder):
        load_weights([model], folder / CHECKPOINT)
    else:
        load_hf_weights([model], architecture, folder)
    return model
