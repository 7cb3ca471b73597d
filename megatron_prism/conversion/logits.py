"""Compares the logits of two models on the same tokens, each run by its own library, and finds the first difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron_prism.conversion.hidden_states import megatron_points, recorded, transformers_points
from megatron_prism.conversion.weights import HFWeights, MegatronWeights, open_weights
from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import load_weights
from megatron_prism.models.families import family
from megatron_prism.models.model_folder import CHECKPOINT
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import session

# The size of the random batch that is used if the user names no text.
RANDOM_BATCH, RANDOM_LENGTH = 2, 64


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model.

    Attributes:
        logits: `[batch, seq, vocabulary]`, fp32.
        hidden: `[batch, seq, hidden]` after the embedding, then after each Hugging Face layer.
    """

    logits: Tensor
    hidden: list[Tensor]


@dataclass(frozen=True)
class LogitComparison:
    """The comparison of two models on the same tokens.

    Attributes:
        max_abs_difference: largest absolute difference of any logit.
        max_abs_logit: largest absolute logit of the second model.
        cosine: smallest cosine between the two logit vectors of a position.
        top1_agreement: share of positions, 0..1, at which both rank the same token first.
        departs: the first layer whose hidden states differ by more than the tolerance; None if there is none.
    """

    max_abs_difference: float
    max_abs_logit: float
    cosine: float
    top1_agreement: float
    departs: str | None

    def allowed(self, tolerance: float) -> float:
        """The largest difference that `tolerance` allows.

        It is relative to the largest logit if that is below 1. Granite divides its logits, so an absolute bound alone
        would miss a wrong multiplier.
        """
        return tolerance * min(1.0, self.max_abs_logit)


def compare(first: Outputs, second: Outputs, tolerance: float) -> LogitComparison:
    """Compare the outputs of two models for the same tokens."""
    mine, theirs = first.logits, second.logits
    return LogitComparison(
        max_abs_difference=float((mine - theirs).abs().max()),
        max_abs_logit=float(theirs.abs().max()),
        cosine=float(nn.functional.cosine_similarity(mine, theirs, dim=-1).min()),
        top1_agreement=float((mine.argmax(-1) == theirs.argmax(-1)).float().mean()),
        departs=_departs(first.hidden, second.hidden, tolerance),
    )


def _departs(first: list[Tensor], second: list[Tensor], tolerance: float) -> str | None:
    for index, (mine, theirs) in enumerate(zip(first, second, strict=True)):
        scale = float(theirs.abs().max())
        # This form of the comparison also catches NaN.
        if not float((mine - theirs).abs().max()) <= tolerance * scale:
            return "the embedding" if index == 0 else f"layer {index - 1}"
    return None


def random_tokens(*models: Architecture, seed: int) -> Tensor:
    """`[batch, seq]` random token ids that are valid for each of these models. A seed gives the same ids everywhere."""
    generator = torch.Generator().manual_seed(seed)
    length = min(RANDOM_LENGTH, *(model.max_position_embeddings for model in models))
    rows = min(model.vocab_size for model in models)
    return torch.randint(rows, (RANDOM_BATCH, length), generator=generator)


def folder_outputs(folder: Path, token_ids: Tensor, dtype: torch.dtype) -> Outputs:
    """Run a Hugging Face folder in transformers, or a Megatron folder in Megatron-Core."""
    weights = open_weights(folder)
    limit = weights.architecture.max_position_embeddings
    if token_ids.shape[1] > limit:
        raise ConfigError(
            f"{folder}: {token_ids.shape[1]} tokens are more than max_position_embeddings={limit}"
        )
    if isinstance(weights, HFWeights):
        return hf_outputs(weights, token_ids, dtype)
    return checkpoint_outputs(weights, token_ids, dtype)


def checkpoint_outputs(
    weights: MegatronWeights,
    token_ids: Tensor,
    dtype: torch.dtype,
    rounded_to: torch.dtype | None = None,
) -> Outputs:
    """Build the model of a Megatron folder in this process and run it in `dtype`.

    Args:
        rounded_to: round the weights to this dtype first, as an export to this dtype does.
    """
    with session():
        model = build_model(weights.architecture, dtype, initialize=False)
        load_weights([model], weights.path / CHECKPOINT)
        if rounded_to is not None:
            for parameter in model.parameters():
                parameter.data.copy_(parameter.data.to(rounded_to))
        return megatron_outputs(model, weights.architecture, token_ids)


@torch.no_grad()
def megatron_outputs(model: Any, architecture: Architecture, token_ids: Tensor) -> Outputs:
    """Run a whole Megatron model (tensor and pipeline parallel sizes 1) of this process."""
    token_ids = token_ids.to(next(model.parameters()).device)
    training = model.training
    model.eval()
    try:
        with recorded(megatron_points(model, architecture), _in_fp32) as states:
            positions = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
            logits = model(token_ids, positions, None)[..., : architecture.vocab_size].float().cpu()
    finally:
        model.train(training)
    # Megatron's activations are [seq, batch, hidden].
    return Outputs(logits, [each.transpose(0, 1) for each in states[:-1]])


@torch.no_grad()
def hf_outputs(weights: HFWeights, token_ids: Tensor, dtype: torch.dtype) -> Outputs:
    """Run transformers' model from a folder, configured to compute the same as Megatron (`Family.for_comparison`)."""
    changes = family(weights.architecture.family).for_comparison
    reference = load_in_transformers(weights.path, dtype, changes).to(device()).eval()
    with recorded(transformers_points(reference), _in_fp32) as states:
        logits = reference(token_ids.to(device()), use_cache=False).logits.float().cpu()
    return Outputs(logits, states[:-1])


def _in_fp32(hidden: Tensor) -> Tensor:
    return hidden.float().cpu()


def load_in_transformers(folder: Path, dtype: torch.dtype, changes: Mapping[str, Any] | None = None) -> Any:
    """The folder's model, loaded by transformers without running code from the folder or unpickling weights.

    Args:
        changes: config keys to set before the model is built.

    Raises:
        CheckpointError: if transformers cannot build or load it, or some of its weights are not in the folder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as upstream

    shows_progress = upstream.is_progress_bar_enabled()
    upstream.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        for key, value in (changes or {}).items():
            setattr(config, key, value)
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as problem:  # an invalid config raises any exception
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise CheckpointError(f"{folder}: transformers cannot load this model ({reason})") from problem
    finally:
        if shows_progress:
            upstream.enable_progress_bar()
    # transformers would only warn, and draw these weights at random.
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} other tensors" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{folder}: the weights lack '{missing[0]}'{more}, which model_type={config.model_type} has; use a "
            "complete checkpoint of this architecture"
        )
    return model
