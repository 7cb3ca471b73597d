"""Tiny random checkpoints of every family, made by transformers itself, in shapes that are odd on purpose."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 61
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# The ramp between kept and stretched frequencies lies inside a head of 16 channels, at either rounding.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
}
DENSE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
MULTIPLIERS: dict[str, Any] = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 4.0,
}
GRANITE4: dict[str, Any] = {
    **DENSE,
    **MULTIPLIERS,
    "model_type": "granitemoehybrid",
    "shared_intermediate_size": 48,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "tie_word_embeddings": True,
}
GRANITE_H: dict[str, Any] = {
    **GRANITE4,
    "layer_types": ["mamba", "attention", "mamba"],
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
NEMOTRON: dict[str, Any] = {
    **DENSE,
    "model_type": "nemotron_h",
    "num_hidden_layers": 6,
    "hybrid_override_pattern": "M-M*-M",
    "head_dim": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 16,
    "n_groups": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**DENSE, "model_type": "llama"},
    "llama-scaled-tied": {
        **DENSE,
        "model_type": "llama",
        "rope_parameters": LLAMA3,
        "tie_word_embeddings": True,
    },
    "llama-one-group": {**DENSE, "model_type": "llama", "num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "llama-yarn": {**DENSE, "model_type": "llama", "head_dim": 16, "rope_parameters": YARN},
    "mistral-window": {**DENSE, "model_type": "mistral", "sliding_window": 7},
    "mistral-wide-heads": {
        **DENSE,
        "model_type": "mistral",
        "hidden_size": 40,
        "head_dim": 16,
        "num_key_value_heads": 4,
        "sliding_window": None,
    },
    "mistral-yarn": {
        **DENSE,
        "model_type": "mistral",
        "head_dim": 16,
        "sliding_window": 9,
        "rope_parameters": {**YARN, "truncate": False, "attention_factor": 1.3},
    },
    "granite": {**DENSE, **MULTIPLIERS, "model_type": "granite", "tie_word_embeddings": True},
    "granite-untied": {**DENSE, **MULTIPLIERS, "model_type": "granite", "num_key_value_heads": 1},
    "granite4": {
        **GRANITE4,
        "layer_types": ["attention"] * 3,
        "position_embedding_type": "rope",
        "mamba_n_heads": 1,
    },
    "granite4-nope": {
        **GRANITE4,
        "layer_types": ["attention"] * 3,
        "mamba_n_heads": 1,
        "tie_word_embeddings": False,
    },
    "granite-h": GRANITE_H,
    "granite-h-rope-groups": {
        **GRANITE_H,
        "position_embedding_type": "rope",
        "mamba_n_groups": 4,
        "mamba_d_head": 16,
        "mamba_expand": 4,
        "rms_norm_eps": 1e-4,
        "tie_word_embeddings": False,
    },
    "nemotron-h": NEMOTRON,
    "nemotron-h-one-group": {
        **NEMOTRON,
        "n_groups": 1,
        "mamba_head_dim": 12,
        "layer_norm_epsilon": 1e-3,
        "num_key_value_heads": 4,
        "hybrid_override_pattern": "*-MM-M",
    },
}
FAMILIES = ("llama", "mistral-window", "mistral-wide-heads", "granite", "granite4", "granite-h", "nemotron-h")


def make_checkpoint(
    name: str, folder: Path, dtype: torch.dtype = torch.float32, confident: bool = False, **changes: Any
) -> Path:
    """Write a tiny Hugging Face folder; weights are large enough that attention, dt and every norm matter.

    A `confident` model's head is its embedding, which is large: one token leads clearly, as in trained models.
    """
    config = AutoConfig.for_model(**(CONFIGS[name] | changes))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    randomize(model)
    with torch.no_grad():
        if confident:
            embedding = model.get_input_embeddings().weight
            embedding.mul_(20)
            model.get_output_embeddings().weight.copy_(embedding)
    with contextlib.redirect_stderr(io.StringIO()):
        model.to(dtype).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


@torch.no_grad()
def randomize(model: torch.nn.Module, generator: torch.Generator | None = None, dt_bias: float = -6) -> None:
    """Give a model weights so large that attention, dt, every norm and every multiplier matter.

    Args:
        dt_bias: mean of Mamba's; at -6 the steps are so small that transformers' clamp of dt would show.
    """
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        if name.endswith("dt_bias"):
            parameter.copy_(noise + dt_bias)
        elif parameter.dim() == 1:
            parameter.add_(0.3 * noise)
        else:
            parameter.copy_(0.2 * noise)


def make_tokenizer(folder: Path, vocabulary: int = VOCABULARY) -> None:
    """One token per character, with an end and a padding token."""
    known = {"<|endoftext|>": 0, "<|pad|>": 1} | {chr(33 + i): 2 + i for i in range(vocabulary - 2)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>"
    ).save_pretrained(folder)
