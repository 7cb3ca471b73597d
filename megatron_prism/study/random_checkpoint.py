"""A tiny random checkpoint of any published model, made by transformers, so that any machine can run the same code."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import (
    architecture_from_config,
    hf_config,
    parameter_count,
    published_config,
)
from megatron_prism.models.model_folder import TOKENIZER_FILES
from megatron_prism.models.rope import RopeScaling
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import seeds
from megatron_prism.pipeline.stage import Stage

HIDDEN, HEADS, POSITIONS = 64, 4, 512
# Every kind of layer of each hybrid family, in the order in which the published pattern begins.
PATTERNS = {"granitemoehybrid": "M-M-*-M-", "nemotron_h": "M-M*-M"}


def tiny_architecture(published: Architecture, vocab_size: int) -> Architecture:
    """The published model with small sizes, which keeps the features of its family.

    Heads wider than hidden/heads stay wider. Windows and scaled positions are small enough to matter in a short text. A
    single query or Mamba group stays single.
    """
    a = published
    pattern = PATTERNS[a.family] if a.hybrid_pattern else None
    head_dim = HIDDEN // HEADS
    if a.head_dim * a.num_attention_heads != a.hidden_size:
        head_dim = head_dim * 3 // 2
    return dataclasses.replace(
        a,
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        num_layers=len(pattern) if pattern else 4,
        ffn_hidden_size=2 * HIDDEN,
        num_attention_heads=HEADS,
        num_query_groups=min(a.num_query_groups, 2),
        head_dim=head_dim,
        max_position_embeddings=POSITIONS,
        # Granite's scale is 1/head_dim at every size.
        attention_multiplier=None if a.attention_multiplier is None else 1 / head_dim,
        rope_scaling=a.rope_scaling and RopeScaling(8.0, 1.0, 4.0, 64),
        sliding_window=a.sliding_window and 32,
        hybrid_pattern=pattern,
        mamba_num_heads=8 if pattern else 0,
        mamba_head_dim=2 * HIDDEN // 8 if pattern else 0,
        mamba_state_dim=16 if pattern else 0,
        mamba_num_groups=min(a.mamba_num_groups, 2),
    )


@dataclass
class RandomCheckpoint(Stage):
    """Input: `tokenizer`. Output: `model/`, a Hugging Face folder of a tiny random model with that tokenizer.

    Attributes:
        model: the published model's Hugging Face name.
    """

    kind: ClassVar[str] = "random-checkpoint"

    model: str
    seed: int = 1

    def __post_init__(self) -> None:
        seeds(self, "seed")

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        tokenizer = inputs["tokenizer"].path
        loaded = AutoTokenizer.from_pretrained(str(tokenizer))
        published = architecture_from_config(published_config(self.model))
        architecture = tiny_architecture(published, len(loaded))
        tokens = {key: getattr(loaded, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf_config(architecture), **tokens))
        model.save_pretrained(str(out / "model"))
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, out / "model" / name)
        return {"parameters": parameter_count(architecture)}
