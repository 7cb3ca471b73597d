"""LLaMA 3 (dense): grouped-query attention, SwiGLU, rotary frequencies scaled for 128k positions."""

from __future__ import annotations

from typing import Any

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.dense import (
    NO_MULTIPLIERS,
    dense_sizes,
    require_fields,
    sizes_to_config,
)
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


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' LlamaForCausalLM; a ConfigError for a model that it cannot express."""
    a = architecture
    require_fields(
        a,
        hybrid_pattern=None,
        activation="swiglu",
        position_embedding="rope",
        sliding_window=None,
        **NO_MULTIPLIERS,
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **sizes_to_config(a),
        "intermediate_size": a.ffn_hidden_size,
        "mlp_bias": False,
        **rope_to_config(a.rope_theta, a.rope_scaling),
    }


def from_config(read: ConfigReader) -> Architecture:
    """The architecture of a LLaMA `config.json`; a ConfigError names a key this model does not have."""
    sizes = dense_sizes(read)
    theta, scaling = read_rope(read, sizes["max_position_embeddings"])
    return Architecture(
        family="llama",
        ffn_hidden_size=read.size("intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        **sizes,
    )


# config.json of the released models, by their Hugging Face names.
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }
}
