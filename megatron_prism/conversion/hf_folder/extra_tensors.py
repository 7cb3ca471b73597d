"""Redundant tensors that older programs store: they are dropped if they agree with the config, and refused otherwise.

The head of a tied model is its embedding, and rotary frequencies follow from the config. transformers computes both
from these. A file with other values belongs to another model, or its config was changed.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from megatron_prism.conversion.hf_folder.reader import HFFolder
from megatron_prism.errors import CheckpointError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.mappings import Shape
from megatron_prism.models.rope import inverse_frequencies

HEAD = "lm_head.weight"
FREQUENCIES = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
# fp16 cannot hold small frequencies exactly: this is the distance between its smallest numbers.
FP16_STEP = 2.0**-24
# The power function of another machine may differ in the last bits.
FP32_RELATIVE = 1e-5


def drop_head(folder: HFFolder, embedding: str, rows: Shape) -> None:
    """Drop the stored head of a tied model.

    Args:
        embedding, rows: the name and shape of the embedding. A missing or wrong embedding is not reported here.

    Raises:
        CheckpointError: if the head differs from the embedding. Shapes are compared before anything is read.
    """
    if HEAD not in folder.stored or embedding not in folder.stored or folder.stored[embedding].shape != rows:
        return
    head = folder.stored[HEAD].shape
    if head != rows or not torch.equal(folder.tensor(HEAD), folder.tensor(embedding)):
        shapes = f" (shape {list(head)}, not {list(rows)})" if head != rows else ""
        raise CheckpointError(
            f"{folder.path}: config.json has tie_word_embeddings=true, but '{HEAD}' is not '{embedding}'{shapes}; "
            "set that key to false if the model has a separate head, or remove the tensor"
        )
    del folder.stored[HEAD]


def drop_frequencies(folder: HFFolder, architecture: Architecture, expected: dict[str, Shape]) -> list[str]:
    """Drop stored rotary frequencies that agree with the config.

    Returns:
        A remark, if there were any.

    Raises:
        CheckpointError: naming the first tensor that holds other frequencies.
    """
    names = [name for name in folder.stored if name not in expected and FREQUENCIES.fullmatch(name)]
    if not names or architecture.position_embedding != "rope":
        return []
    a = architecture
    accepted = [inverse_frequencies(a.head_dim, a.rope_theta, a.rope_scaling)]
    if a.rope_scaling is not None and a.rope_scaling.rope_type == "linear":
        # Before transformers 4.43 the positions were divided, and the stored frequencies were not scaled.
        accepted.append(inverse_frequencies(a.head_dim, a.rope_theta))
    for name in names:
        stored = folder.stored[name]
        if stored.shape != tuple(accepted[0].shape) or not _is_one_of(folder.tensor(name), accepted):
            raise CheckpointError(
                f"{folder.path}: tensor '{name}' differs from the rotary frequencies of config.json "
                f"({_difference(folder, name, accepted[0])}); correct the config's rotary settings, or remove "
                "the tensor if they are right"
            )
    for name in names:
        del folder.stored[name]
    return [
        f"{folder.path}: rotary frequencies that agree with config.json are dropped: '{names[0]}'"
        f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
    ]


def _is_one_of(stored: Tensor, accepted: list[Tensor]) -> bool:
    relative = FP32_RELATIVE if stored.dtype is torch.float32 else torch.finfo(stored.dtype).eps
    step = FP16_STEP if stored.dtype is torch.float16 else 0.0
    return any(torch.allclose(stored.float(), each, rtol=relative, atol=step) for each in accepted)


def _difference(folder: HFFolder, name: str, wanted: Tensor) -> str:
    shape = folder.stored[name].shape
    if shape != tuple(wanted.shape):
        return f"shape {list(shape)}, not {list(wanted.shape)}"
    return f"the last is {float(folder.tensor(name).float()[-1]):.4g}, not {float(wanted[-1]):.4g}"


def check_head(folder: Path, expected: dict[str, Shape], found: dict[str, Shape]) -> None:
    """Raise a CheckpointError if only the head of an untied model is missing: transformers would make a random one."""
    if HEAD in expected and HEAD not in found and expected.keys() - found.keys() == {HEAD}:
        raise CheckpointError(
            f"{folder}: no tensor '{HEAD}', and config.json does not set tie_word_embeddings=true; set the key if "
            "the embedding is also the head"
        )
