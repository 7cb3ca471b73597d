"""Granite 3 (dense): LLaMA's layers with four multipliers, which are never folded into weights.

| config.json, `Architecture` | multiplies | applied in |
|---|---|---|
| embedding_multiplier | the output of the embedding | layers/multipliers.py |
| residual_multiplier | the output of attention and of the MLP, before the residual sum | layers/multipliers.py |
| attention_multiplier | the attention scores (it is the softmax scale itself) | build.py, softmax_scale |
| logits_scaling | the logits, which are divided by it | layers/multipliers.py |

Source: transformers' modeling_granite.py.
"""

from __future__ import annotations

from typing import Any

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.dense import dense_sizes, require_fields, sizes_to_config
from megatron_prism.models.hf_config import ConfigReader
from megatron_prism.models.mappings import (
    ATTENTION_OUTPUT,
    GATE_UP,
    MLP_OUTPUT,
    NORM,
    QUERY_KEY_VALUE,
    VOCABULARY,
    Rule,
)
from megatron_prism.models.rope_config import read_rope, rope_to_config

# Megatron's name, Hugging Face's names, and how the rows are arranged; `{}` is the number of the layer.
EMBEDDING = Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), VOCABULARY)
LAYER = (
    Rule("decoder.layers.{}.input_layernorm.weight", ("model.layers.{}.input_layernorm.weight",), NORM),
    Rule(
        "decoder.layers.{}.self_attention.linear_qkv.weight",
        (
            "model.layers.{}.self_attn.q_proj.weight",
            "model.layers.{}.self_attn.k_proj.weight",
            "model.layers.{}.self_attn.v_proj.weight",
        ),
        QUERY_KEY_VALUE,
    ),
    Rule(
        "decoder.layers.{}.self_attention.linear_proj.weight",
        ("model.layers.{}.self_attn.o_proj.weight",),
        ATTENTION_OUTPUT,
    ),
    Rule(
        "decoder.layers.{}.pre_mlp_layernorm.weight",
        ("model.layers.{}.post_attention_layernorm.weight",),
        NORM,
    ),
    Rule(
        "decoder.layers.{}.mlp.linear_fc1.weight",
        ("model.layers.{}.mlp.gate_proj.weight", "model.layers.{}.mlp.up_proj.weight"),
        GATE_UP,
    ),
    Rule("decoder.layers.{}.mlp.linear_fc2.weight", ("model.layers.{}.mlp.down_proj.weight",), MLP_OUTPUT),
)
FINAL_NORM = Rule("decoder.final_layernorm.weight", ("model.norm.weight",), NORM)
HEAD = Rule("output_layer.weight", ("lm_head.weight",), VOCABULARY)


def rules(architecture: Architecture) -> list[Rule]:
    """Every parameter of the model, in layer order. A tied model has no output head."""
    layers = [rule.in_layer(number) for number in range(architecture.num_layers) for rule in LAYER]
    return [EMBEDDING, *layers, FINAL_NORM, *([] if architecture.tie_word_embeddings else [HEAD])]


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
    # Granite's default is 1.0 and not 1/sqrt(head_dim), so the value is always written.
    attention = a.head_dim**-0.5 if a.attention_multiplier is None else a.attention_multiplier
    return {
        "attention_multiplier": attention,
        "embedding_multiplier": a.embedding_multiplier,
        "residual_multiplier": a.residual_multiplier,
        "logits_scaling": a.logits_scaling,
    }


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' GraniteForCausalLM; a ConfigError for a model that it cannot express."""
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


# config.json of the released models, by their Hugging Face names.
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
