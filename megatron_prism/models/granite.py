"""Granite 3 (dense): its Hugging Face config, read and written, and its parameter table.

The four multipliers stay multipliers on both sides; transformers' modeling_granite.py applies each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.mappings import GATE_UP, QUERY_KEY_VALUE, VOCABULARY, Rule

LAYER = (
    Rule("input_layernorm.weight", ("input_layernorm.weight",)),
    Rule(
        "self_attention.linear_qkv.weight",
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        QUERY_KEY_VALUE,
    ),
    Rule("self_attention.linear_proj.weight", ("self_attn.o_proj.weight",)),
    Rule("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",)),
    Rule("mlp.linear_fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), GATE_UP),
    Rule("mlp.linear_fc2.weight", ("mlp.down_proj.weight",)),
)
EMBEDDING = Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), VOCABULARY)
FINAL_NORM = Rule("decoder.final_layernorm.weight", ("model.norm.weight",))
HEAD = Rule("output_layer.weight", ("lm_head.weight",), VOCABULARY)


def rules(architecture: Architecture) -> list[Rule]:
    """Every parameter of the model, in layer order; a tied model has no head of its own."""
    rows = [EMBEDDING]
    for layer in range(architecture.num_layers):
        rows += [rule.at(f"decoder.layers.{layer}.", f"model.layers.{layer}.") for rule in LAYER]
    return [*rows, FINAL_NORM] + ([] if architecture.tie_word_embeddings else [HEAD])


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' GraniteForCausalLM.

    Raises:
        ConfigError: for an architecture that Granite cannot express.
    """
    a = architecture
    if a.is_hybrid or a.activation != "swiglu" or a.position_embedding != "rope":
        raise ConfigError(
            f"family=granite needs hybrid_pattern=null, activation=swiglu and position_embedding=rope; it "
            f"has {a.hybrid_pattern}, {a.activation} and {a.position_embedding}"
        )
    return {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.ffn_hidden_size,
        "num_hidden_layers": a.num_layers,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_query_groups,
        "head_dim": a.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": a.norm_epsilon,
        "max_position_embeddings": a.max_position_embeddings,
        "tie_word_embeddings": a.tie_word_embeddings,
        "initializer_range": a.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": a.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        # Granite's own default is 1.0, not 1/sqrt(head_dim): always written out.
        "attention_multiplier": a.head_dim**-0.5
        if a.attention_multiplier is None
        else a.attention_multiplier,
        "embedding_multiplier": a.embedding_multiplier,
        "residual_multiplier": a.residual_multiplier,
        "logits_scaling": a.logits_scaling,
    }


def from_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a Granite `config.json`; old files keep `rope_theta` at the top level.

    Raises:
        ConfigError: for rope scaling or biases, which this model does not have.
    """
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    if scaling.get("rope_type", "default") != "default":
        raise ConfigError(f"config.json: rope_type={scaling['rope_type']!r} is not supported; only 'default'")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ConfigError(f"config.json: {key}=true is not supported; Granite 3 has no biases")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return Architecture(
        family="granite",
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config["num_hidden_layers"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        activation="swiglu",
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        max_position_embeddings=config.get("max_position_embeddings", 2048),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        initializer_range=config.get("initializer_range", 0.02),
        position_embedding="rope",
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        attention_multiplier=config.get("attention_multiplier", 1.0),
        embedding_multiplier=config.get("embedding_multiplier", 1.0),
        residual_multiplier=config.get("residual_multiplier", 1.0),
        logits_scaling=config.get("logits_scaling", 1.0),
    )
