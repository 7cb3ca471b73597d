"""Granite 3 (dense): LLaMA's layers with four multipliers, which stay multipliers on both sides.

transformers' modeling_granite.py applies each: the embedding's output, both branches of a layer, the softmax scale
(attention_multiplier is the scale itself) and the logits, which are divided.
"""

from __future__ import annotations

from typing import Any

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.dense import dense_rules, dense_sizes, require_fields, sizes_to_config
from megatron_prism.models.hf_config import ConfigReader
from megatron_prism.models.rope_config import read_rope, rope_to_config

PUBLISHED: dict[str, dict[str, Any]] = {
    "ibm-granite/granite-3.3-8b-base": {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        # The instruct model has 49159: seven tokens for its chat roles.
        "vocab_size": 49152,
        "hidden_size": 4096,
        "intermediate_size": 12800,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": 10000000.0,
        "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "logits_scaling": 16.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
}

rules = dense_rules


def multipliers(config: ConfigReader) -> dict[str, Any]:
    """Granite's four scalars; each is 1 where the config does not name it."""
    return {
        "attention_multiplier": config.number("attention_multiplier", 1.0),
        "embedding_multiplier": config.number("embedding_multiplier", 1.0),
        "residual_multiplier": config.number("residual_multiplier", 1.0),
        "logits_scaling": config.number("logits_scaling", 1.0, above=0),
    }


def multipliers_to_config(architecture: Architecture) -> dict[str, float]:
    """The keys that `multipliers` reads."""
    a = architecture
    # Granite's own default is 1.0, not 1/sqrt(head_dim): always written out.
    attention = a.head_dim**-0.5 if a.attention_multiplier is None else a.attention_multiplier
    return {
        "attention_multiplier": attention,
        "embedding_multiplier": a.embedding_multiplier,
        "residual_multiplier": a.residual_multiplier,
        "logits_scaling": a.logits_scaling,
    }


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' GraniteForCausalLM; a ConfigError for what Granite cannot express."""
    a = architecture
    require_fields(
        a, hybrid_pattern=None, activation="swiglu", position_embedding="rope", sliding_window=None
    )
    return {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        **sizes_to_config(a),
        "intermediate_size": a.ffn_hidden_size,
        "mlp_bias": False,
        **rope_to_config(a.rope_theta, a.rope_scaling),
        **multipliers_to_config(a),
    }


def from_config(read: ConfigReader) -> Architecture:
    """The architecture of a Granite `config.json`; a ConfigError names a key this model does not have."""
    sizes = dense_sizes(read)
    theta, scaling = read_rope(read, sizes["max_position_embeddings"])
    return Architecture(
        family="granite",
        ffn_hidden_size=read.size("intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        **sizes,
        **multipliers(read),
    )
