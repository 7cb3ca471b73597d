"""Mistral (dense): LLaMA's layers, with a sliding window in the 7B, and heads narrower than hidden/heads in Small.

A window of W lets a query see itself and the W - 1 tokens before it (transformers' masking_utils.py,
`sliding_window_overlay`), which is Megatron's `window_size=(W - 1, 0)`.
"""

from __future__ import annotations

from typing import Any

from megatron_prism.errors import ConfigError
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


# transformers' defaults for absent keys. A window of null means no window.
DEFAULT_WINDOW = 4096
DEFAULT_GROUPS, DEFAULT_POSITIONS = 8, 131072


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' MistralForCausalLM; a ConfigError for a model that it cannot express."""
    a = architecture
    require_fields(a, hybrid_pattern=None, activation="swiglu", position_embedding="rope", **NO_MULTIPLIERS)
    config = sizes_to_config(a)
    # Mistral has no biases, and its config has no key for them.
    del config["attention_bias"]
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **config,
        "intermediate_size": a.ffn_hidden_size,
        **rope_to_config(a.rope_theta, a.rope_scaling),
        "sliding_window": a.sliding_window,
    }


def from_config(read: ConfigReader) -> Architecture:
    """The architecture of a Mistral `config.json`; a ConfigError names a key this model does not have."""
    sizes = dense_sizes(read, default_groups=DEFAULT_GROUPS, default_positions=DEFAULT_POSITIONS)
    theta, scaling = read_rope(read, sizes["max_position_embeddings"])
    # Null means no window, and an absent key means the default window.
    without = "sliding_window" in read and read.get("sliding_window") is None
    window = None if without else read.size("sliding_window", DEFAULT_WINDOW)
    if window is not None and read.get("use_sliding_window") is False:
        raise ConfigError(
            f"config.json: use_sliding_window=False contradicts sliding_window={window}, and transformers reads only "
            "the latter; set sliding_window to null for no window, or remove use_sliding_window"
        )
    return Architecture(
        family="mistral",
        ffn_hidden_size=read.size("intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        sliding_window=window,
        **sizes,
    )


# config.json of the released models, by their Hugging Face names.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mistralai/Mistral-Small-24B-Base-2501": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "rope_theta": 100000000.0,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
