"""Gives unquantized tensors the dtype that they have in the source checkpoint.

transformers loads a whole model in one dtype. A checkpoint may store some tensors in a finer dtype, for example Mamba's
A_log, D and dt_bias in fp32 with bf16 matrices. These are rounded when they are loaded, and would be written rounded.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_prism.conversion.weights import HFWeights
from megatron_prism.models.model_folder import INDEX, read_json
from megatron_prism.pipeline.artifact import write_json


def restore_dtypes(source: HFWeights, folder: Path, quantized: Set[str]) -> list[str]:
    """Replace unquantized tensors that were written in another dtype by those of the source; one file is in memory.

    Args:
        folder: the written folder with safetensors files.
        quantized: checkpoint names of the quantized layers, without '.weight'.

    Returns:
        A remark for each dtype that names the tensors; empty if nothing was rounded.
    """
    kept: dict[torch.dtype, list[str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        restored = {
            name: source.tensor(name)
            for name, tensor in tensors.items()
            if name in source.stored
            and name.removesuffix(".weight") not in quantized
            and tensor.dtype is not source.stored[name].dtype
        }
        if restored:
            save_file(tensors | restored, str(path), metadata)
        for name, tensor in restored.items():
            kept.setdefault(tensor.dtype, []).append(name)
    if kept:
        _correct_total(folder)
    return [
        f"{len(names)} tensors, such as '{names[0]}', keep the source's dtype {dtype}; for the comparison of logits "
        "they were rounded to the model's dtype"
        for dtype, names in kept.items()
    ]


def _correct_total(folder: Path) -> None:
    """Update the total number of bytes in the index."""
    if not (folder / INDEX).is_file():
        return
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    index: dict[str, Any] = read_json(folder / INDEX)
    write_json(folder / INDEX, index | {"metadata": {**(index.get("metadata") or {}), "total_size": total}})
