"""Tensors that stay unquantized get back the dtype they had in the source checkpoint.

transformers loads a whole model in the dtype of its config. A checkpoint may keep single tensors finer, as Mamba's
A_log, D and dt_bias in fp32 beside bf16 matrices: after loading they are rounded, and would be written so.
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
    """Put the source's own tensors where an unquantized one was written in another dtype; one file in memory.

    Args:
        folder: what was written, in safetensors files.
        quantized: checkpoint names of the quantized layers, without '.weight'.

    Returns:
        A remark that names the tensors and their dtype; none where nothing was rounded.
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
        f"tensors kept in {dtype}, as the source has them: {len(names)}, such as '{names[0]}'; the logits were "
        "compared with these rounded to the model's dtype"
        for dtype, names in kept.items()
    ]


def _correct_total(folder: Path) -> None:
    """The index says how many bytes all tensors have."""
    if not (folder / INDEX).is_file():
        return
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    index: dict[str, Any] = read_json(folder / INDEX)
    write_json(folder / INDEX, index | {"metadata": {**(index.get("metadata") or {}), "total_size": total}})
