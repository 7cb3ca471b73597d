"""The models of a merge, found to be of one kind before any tensor is read.

Configs and tokenizers are compared first, then the headers of the weights (`open_weights` checks each model against its
own config): a mismatch costs no reading.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_prism.conversion.model_folder import ARCHITECTURE, HF_FILES, Weights, open_weights
from megatron_prism.conversion.safetensors_io import CONFIG, read_json
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import architecture_from_config

TOKENIZER = "tokenizer.json"
# How texts are cut to a length and filled up says nothing of the vocabulary, and programs leave it in the file.
PASSING = ("truncation", "padding")
# What is compared first, with what can be done; then every other field of the architecture.
REMEDIES = {
    "family": "only models of one family can be merged",
    "vocab_size": "their embeddings have other rows; merge models with one vocabulary",
    "tie_word_embeddings": "one has a head of its own and one does not; merge two tied models or two untied ones",
}
# How far a model was trained to look, which no tensor depends on.
FREE = ("max_position_embeddings",)


def open_models(folders: Sequence[Path]) -> tuple[list[Weights], list[str]]:
    """Open the folders, of either kind, in their order; no tensor is read.

    Returns:
        The models, and remarks on differences that are allowed, one line each.

    Raises:
        CheckpointError, ConfigError: naming the folder and the first difference that forbids a merge.
    """
    paths = [Path(folder) for folder in folders]
    architectures = [_architecture(path) for path in paths]
    remarks = []
    for path, architecture in zip(paths[1:], architectures[1:], strict=True):
        _require_same(path, architecture, paths[0], architectures[0])
        for name in FREE:
            mine, first = getattr(architecture, name), getattr(architectures[0], name)
            if mine != first:
                remarks.append(f"{path} has {name}={mine}; the result keeps {first} of {paths[0]}")
    tokenizers = [path / file for path in paths if (path / (file := _tokenizer(path))).is_file()]
    for tokenizer in tokenizers[1:]:
        _require_same_tokenizer(tokenizer, tokenizers[0])
    models: list[Weights] = [open_weights(path) for path in paths]
    for model in models[1:]:
        for name, dtype in models[0].dtypes.items():
            if model.dtypes[name] is not dtype:
                remarks.append(
                    f"{model.path}: '{name}' is {model.dtypes[name]}; the result keeps {dtype} of {paths[0]}"
                )
                break
    return models, remarks


def is_megatron(folder: Path) -> bool:
    return (folder / ARCHITECTURE).is_file()


def _tokenizer(folder: Path) -> str:
    return f"{HF_FILES}/{TOKENIZER}" if is_megatron(folder) else TOKENIZER


def _architecture(folder: Path) -> Architecture:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if is_megatron(folder):
        return Architecture.load(folder / ARCHITECTURE)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: holds no model (neither {ARCHITECTURE} nor {CONFIG})")
    try:
        return architecture_from_config(read_json(folder / CONFIG))
    except ConfigError as problem:
        raise ConfigError(f"{folder}/{problem}") from None


def _require_same(path: Path, architecture: Architecture, first_path: Path, first: Architecture) -> None:
    others = [each.name for each in dataclasses.fields(first) if each.compare and each.name not in FREE]
    for name in (*REMEDIES, *others):
        mine, theirs = getattr(architecture, name), getattr(first, name)
        if mine != theirs:
            remedy = REMEDIES.get(name, "only models of one architecture can be merged")
            raise CheckpointError(f"{path}: {name}={mine}, but {first_path} has {name}={theirs}; {remedy}")


def _require_same_tokenizer(path: Path, first: Path) -> None:
    if path.read_bytes() == first.read_bytes():
        return
    mine, theirs = _tokenizer_parts(path), _tokenizer_parts(first)
    tokens, their_tokens = _token_ids(mine), _token_ids(theirs)
    for token in (*their_tokens, *tokens):
        if tokens.get(token) != their_tokens.get(token):
            raise CheckpointError(
                f"{path}: token {token!r} is number {tokens.get(token)}, in {first} it is number "
                f"{their_tokens.get(token)}; models of one tokenizer are needed"
            )
    for part in (*theirs, *mine):
        if mine.get(part) != theirs.get(part):
            raise CheckpointError(
                f"{path}: its '{part}' is not that of {first}; models of one tokenizer are needed"
            )


def _tokenizer_parts(path: Path) -> dict[str, Any]:
    return {key: value for key, value in read_json(path).items() if key not in PASSING}


def _token_ids(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Token -> id of the vocabulary and of the added tokens (a Unigram vocabulary is a list of [token, score])."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):
        vocabulary = {json.dumps(entry[0]): place for place, entry in enumerate(vocabulary)}
    added = {each["content"]: each["id"] for each in tokenizer.get("added_tokens") or []}
    return {**vocabulary, **added}
