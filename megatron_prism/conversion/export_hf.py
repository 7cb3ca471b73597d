"""From a Megatron model to a Hugging Face folder, and the proof that both compute the same logits."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_prism.conversion.checkpoint_io import unwrap
from megatron_prism.errors import ArtifactError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import hf_config, to_hf
from megatron_prism.pipeline.artifact import partial_path, write_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class LogitComparison:
    """Two models on the same tokens.

    Attributes:
        max_abs_difference: largest absolute difference of any logit.
        max_abs_logit: largest absolute logit of the exported model, the scale of the former.
        top1_agreement: share of positions, 0..1, at which both rank the same token first.
    """

    max_abs_difference: float
    max_abs_logit: float
    top1_agreement: float


def export_model(model: Any, architecture: Architecture, tokenizer_folder: Path, out: Path) -> None:
    """Write `out`: safetensors, config.json, generation_config.json and the tokenizer's files.

    Args:
        model: a whole model (tensor and pipeline parallel sizes 1); vocabulary padding is left out.
        tokenizer_folder: holds tokenizer.json and tokenizer_config.json.
        out: appears in one rename when complete; an older folder there is replaced.

    Raises:
        ArtifactError: when the tokenizer's files are missing.
        CheckpointError, ConfigError: when the family cannot express the model.
    """
    from safetensors.torch import save_file

    for name in TOKENIZER_FILES[:2]:
        if not (tokenizer_folder / name).is_file():
            raise ArtifactError(f"{tokenizer_folder / name}: missing; a tokenizer folder needs it")
    tensors = to_hf(architecture, unwrap(model).state_dict())
    if architecture.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    partial = partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, partial / name)
    tokens = _token_ids(partial)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_json(partial / "config.json", {**hf_config(architecture), **tokens, "dtype": dtype})
    write_json(
        partial / "generation_config.json", {key: value for key, value in tokens.items() if value is not None}
    )
    for name, shard in _shards(tensors, partial).items():
        save_file(
            {key: tensors[key].detach().cpu().contiguous() for key in shard}, partial / name, {"format": "pt"}
        )
    if out.exists():
        shutil.rmtree(out)
    os.rename(partial, out)


def _token_ids(folder: Path) -> dict[str, int | None]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return {key: getattr(tokenizer, key) for key in TOKEN_IDS}


def _shards(tensors: dict[str, Tensor], folder: Path) -> dict[str, list[str]]:
    """File name -> tensor names, in files of at most 5 GB; more than one file gets an index."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(tensors, max_shard_size="5GB")
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    return dict(split.filename_to_tensors)


@torch.no_grad()
def compare_logits(model: Any, hf_folder: Path, token_ids: Tensor) -> LogitComparison:
    """Run the Megatron model and transformers' model from `hf_folder` on `token_ids` `[batch, seq]`."""
    from transformers import AutoModelForCausalLM

    parameter = next(model.parameters())
    token_ids = token_ids.to(parameter.device)
    reference = AutoModelForCausalLM.from_pretrained(str(hf_folder), dtype=parameter.dtype).to(
        parameter.device
    )
    theirs = reference.eval()(token_ids, use_cache=False).logits.float()
    training = model.training
    model.eval()
    try:
        positions = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
        ours = model(token_ids, positions, None)[..., : theirs.shape[-1]].float()
    finally:
        model.train(training)
    return LogitComparison(
        max_abs_difference=float((ours - theirs).abs().max()),
        max_abs_logit=float(theirs.abs().max()),
        top1_agreement=float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    )
