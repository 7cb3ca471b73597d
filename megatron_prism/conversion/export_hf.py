"""Exports to a Hugging Face folder, from a checkpoint without building a model, or from a running model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_prism.conversion.config_json import write_config
from megatron_prism.conversion.gather import gather_hf
from megatron_prism.conversion.hf_folder.writer import MAX_SHARD_BYTES, FolderWriter
from megatron_prism.conversion.side_files.carry import carry_files, replace_tokenizer
from megatron_prism.conversion.side_files.token_ids import (
    TOKEN_IDS,
    check_fits,
    disagreements,
    update_token_ids,
)
from megatron_prism.conversion.side_files.tokenizer_facts import (
    has_tokenizer,
    stored_vocabulary,
    tokenizer_facts,
)
from megatron_prism.conversion.torch_dist.reader import quick_collection
from megatron_prism.conversion.weights import Weights
from megatron_prism.errors import ArtifactError, PrismError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import hf_shapes, parameter_count, parameter_map
from megatron_prism.models.mappings import Shape
from megatron_prism.models.model_folder import CONFIG, GENERATION_CONFIG
from megatron_prism.pipeline.artifact import write_json

Progress = Callable[[int], None]


def export_checkpoint(
    source: Weights,
    out: Path,
    *,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress = lambda nbytes: None,
) -> dict[str, Any]:
    """Write a Hugging Face folder. Tensors that keep their dtype are copied by the kernel, others one group at a time.

    Args:
        out: an existing folder; the caller moves it to its final name.
        tokenizer: folder with a tokenizer; by default the one that came with the weights.
        dtype: of the tensors; None keeps the checkpoint's.

    Returns:
        Metrics: parameters, bytes of the weights, and remarks on the files next to them (`write_side_files`).

    Raises:
        ArtifactError: if there is no tokenizer, or it does not fit the model.
    """
    if tokenizer is None and source.files is None:
        raise ArtifactError(f"{source.path}: this model has no tokenizer; name a folder with one")
    tensors = {name: (dtype or source.dtypes[name], shape) for name, shape in source.shapes.items()}
    remarks = write_side_files(
        out,
        source.architecture,
        files=source.files,
        tokenizer=tokenizer,
        dtype=_main_dtype(tensors),
    )
    with FolderWriter(out, tensors, max_shard_bytes) as writer, quick_collection():
        for rule in parameter_map(source.architecture):
            for name in rule.hf:
                kept = tensors[name][0] is source.dtypes[name]
                ranges = source.ranges(name) if kept else None
                if ranges is not None:
                    writer.copy(name, ranges)
                else:
                    writer.write(name, source.tensor(name).to(tensors[name][0]))
                progress(math.prod(tensors[name][1]) * source.dtypes[name].itemsize)
            source.release()
    return {
        "parameters": parameter_count(source.architecture),
        "bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
        "remarks": remarks,
    }


def export_running(
    models: list[Any],
    architecture: Architecture,
    out: Path,
    *,
    tokenizer: Path | None = None,
    files: Path | None = None,
) -> None:
    """Export the model of these ranks. Every rank must call it; rank 0 writes.

    Args:
        models: this rank's model chunks, with any tensor, pipeline or data-parallel layout.
        out: an existing folder that rank 0 can access.
        tokenizer: folder with a tokenizer.
        files: folder with the config and other files that came with the model.
    """
    gathered = gather_hf(models, architecture)
    if gathered is None:
        return
    dtypes, tensors = gathered
    shapes = {name: (dtypes[name], shape) for name, shape in hf_shapes(architecture).items()}
    write_side_files(out, architecture, files=files, tokenizer=tokenizer, dtype=_main_dtype(shapes))
    with FolderWriter(out, shapes) as writer:
        for name, tensor in tensors:
            writer.write(name, tensor)


def write_side_files(
    out: Path,
    architecture: Architecture,
    *,
    files: Path | None,
    tokenizer: Path | None,
    dtype: torch.dtype,
) -> list[str]:
    """Write everything except the weights: tokenizer, config and generation config, with consistent token ids.

    Args:
        files: folder with the files that came with the model; None if there are none.
        tokenizer: folder with another tokenizer, whose ids replace those of `files`. None copies all files unchanged.
        dtype: of the model's tensors.

    Returns:
        Remarks: which ids changed, which files were not copied, and which files contradict each other.

    Raises:
        ArtifactError: if there is no tokenizer, or it has more tokens than the model has rows.
    """
    remarks = carry_files(files, out) if files is not None else []
    if tokenizer is None and files is not None and not (files / CONFIG).is_file() and has_tokenizer(files):
        # Without a config there are no ids to keep, so this tokenizer is treated like one that the user names.
        tokenizer = files
    if tokenizer is None and files is None:
        raise ArtifactError(f"{out}: this model has no tokenizer; name a folder with one")
    if tokenizer is None:
        write_config(out, architecture, dtype, {})
        return remarks + disagreements(files or out, architecture.vocab_size)
    try:
        before = stored_vocabulary(out)
    except PrismError:  # the old vocabulary cannot be read, so every id may have changed its meaning
        before = None
    facts = tokenizer_facts(tokenizer)
    check_fits(facts, architecture.vocab_size, tokenizer)
    remarks += replace_tokenizer(tokenizer, out)
    if files is not None:
        write_config(out, architecture, dtype, {})
        return remarks + update_token_ids(out, facts, before)
    tokens = {key: facts.ids[key] for key in TOKEN_IDS}
    write_config(out, architecture, dtype, tokens)
    write_json(out / GENERATION_CONFIG, {key: value for key, value in tokens.items() if value is not None})
    return remarks


def _main_dtype(tensors: Mapping[str, tuple[torch.dtype, Shape]]) -> torch.dtype:
    """The dtype of the embedding, the first tensor: the dtype that config.json names."""
    return next(iter(tensors.values()))[0]
