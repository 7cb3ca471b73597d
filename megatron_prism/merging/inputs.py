"""The models of a merge, compared before any tensor is read.

Configs and tokenizers are compared first, then the headers of the weight files (`open_weights` checks each model
against its own config). So a mismatch is found within seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_prism.conversion.side_files.compare_tokenizers import compare_tokenizers
from megatron_prism.conversion.side_files.tokenizer_facts import has_tokenizer
from megatron_prism.conversion.weights import Weights, open_weights
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import architecture_from_config
from megatron_prism.models.model_folder import ARCHITECTURE, CONFIG, HF_FILES, read_json

# The fields that are compared first, each with a remedy. Every other field of the architecture is compared after them.
REMEDIES = {
    "family": "only models of one family can be merged",
    "vocab_size": "the rows of their embeddings differ; merge models that share a vocabulary",
    "tie_word_embeddings": "one has an output head and the other does not; merge two tied models or two untied ones",
}
# Fields that may differ: no tensor depends on them.
IGNORED_FIELDS = ("max_position_embeddings",)


def open_models(folders: Sequence[Path], tokenizer_chosen: bool = False) -> tuple[list[Weights], list[str]]:
    """Open the folders, of either kind, in their order. No tensor is read.

    Args:
        tokenizer_chosen: whether the user chose the tokenizer of the result. Then the tokenizers may split text
            differently, or one may have more tokens, as long as no id means two tokens.

    Returns:
        The models, and remarks on differences that are allowed, one line each.

    Raises:
        CheckpointError, ConfigError: naming the folder and the first difference that makes a merge impossible.
    """
    paths = [Path(folder) for folder in folders]
    architectures = [_architecture(path) for path in paths]
    for path, architecture in zip(paths[1:], architectures[1:], strict=True):
        _require_same(path, architecture, paths[0], architectures[0])
    remarks = _compare_tokenizers([_files(path) for path in paths], tokenizer_chosen)
    models: list[Weights] = [open_weights(path) for path in paths]
    return models, list(dict.fromkeys(each for model in models for each in model.remarks)) + remarks


def dtype_remarks(models: Sequence[Weights], wanted: torch.dtype | None) -> list[str]:
    """One line for each model whose tensors have another dtype than those of the result."""
    remarks = []
    for model in models:
        for name, first in models[0].dtypes.items():
            if model.dtypes[name] is not (wanted or first):
                result = f"is {wanted}, as requested" if wanted else f"keeps {first} of {models[0].path}"
                remarks.append(f"{model.path}: '{name}' is {model.dtypes[name]}; the result {result}")
                break
    return remarks


def _compare_tokenizers(folders: Sequence[Path], chosen: bool) -> list[str]:
    """Remarks on differences that do not matter; a CheckpointError for tokenizers that do not fit each other."""
    with_tokenizer = [folder for folder in folders if has_tokenizer(folder)]
    remarks = []
    for folder in with_tokenizer[1:]:
        found = compare_tokenizers(with_tokenizer[0], folder)
        if found.conflict:
            raise CheckpointError(f"{found.conflict}; only models that share a vocabulary can be merged")
        if found.choice and not chosen:
            raise CheckpointError(
                f"{found.choice}; merge models that share a tokenizer, or choose one of them (--tokenizer-from MODEL)"
            )
        remarks += [each for each in (found.choice, found.remark) if each]
    return remarks


def is_megatron(folder: Path) -> bool:
    return (folder / ARCHITECTURE).is_file()


def _files(folder: Path) -> Path:
    """The folder with the config and tokenizer of a model."""
    return folder / HF_FILES if is_megatron(folder) else folder


def _architecture(folder: Path) -> Architecture:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if is_megatron(folder):
        return Architecture.load(folder / ARCHITECTURE)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: not a model folder (it has neither {ARCHITECTURE} nor {CONFIG})")
    try:
        return architecture_from_config(read_json(folder / CONFIG))
    except ConfigError as problem:
        raise ConfigError(f"{folder}/{problem}") from None


def _require_same(path: Path, architecture: Architecture, first_path: Path, first: Architecture) -> None:
    others = [
        each.name for each in dataclasses.fields(first) if each.compare and each.name not in IGNORED_FIELDS
    ]
    for name in (*REMEDIES, *others):
        mine, theirs = getattr(architecture, name), getattr(first, name)
        if mine != theirs:
            remedy = REMEDIES.get(name, "only models of one architecture can be merged")
            raise CheckpointError(f"{path}: {name}={mine}, but {first_path} has {name}={theirs}; {remedy}")
