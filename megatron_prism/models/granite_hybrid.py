"""Granite 4 without experts: the dense Micro and the Mamba hybrid H-Micro, both published as GraniteMoeHybrid.

Every Hugging Face layer is a mixer (attention or Mamba-2) and an MLP whose gate and up projections are one tensor. A
dense model is a Megatron GPTModel; a hybrid is a MambaModel in which each of those layers becomes two.
"""

from __future__ import annotations

from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP, Architecture
from megatron_prism.models.dense import (
    ATTENTION_ROWS,
    EMBEDDING,
    HEAD,
    dense_rules,
    dense_sizes,
    require_fields,
    sizes_to_config,
)
from megatron_prism.models.granite import multipliers, multipliers_to_config
from megatron_prism.models.hf_config import ConfigReader
from megatron_prism.models.mappings import (
    CONV_KERNEL,
    MLP_INPUT,
    MLP_OUTPUT,
    NORM,
    Rule,
)
from megatron_prism.models.mappings import MAMBA as MAMBA_LAYOUTS
from megatron_prism.models.rope_config import read_rope, rope_to_config

_MICRO: dict[str, Any] = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "model_type": "granitemoehybrid",
    "vocab_size": 100352,
    "intermediate_size": 8192,
    "shared_intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "attention_bias": False,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "bos_token_id": 100257,
    "eos_token_id": 100257,
    "pad_token_id": 100256,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "ibm-granite/granite-4.0-micro-base": _MICRO
    | {
        "hidden_size": 2560,
        "num_attention_heads": 40,
        "layer_types": ["attention"] * 40,
        "position_embedding_type": "rope",
        "rope_theta": 10000000.0,
        "logits_scaling": 10.0,
        # Carried by the published file, used by no layer.
        "mamba_n_heads": 128,
        "mamba_d_state": 256,
        "mamba_d_head": 40,
    },
    "ibm-granite/granite-4.0-h-micro-base": _MICRO
    | {
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "layer_types": ["attention" if layer in (5, 15, 25, 35) else "mamba" for layer in range(40)],
        "position_embedding_type": "nope",
        "rope_theta": 10000.0,
        "logits_scaling": 8.0,
        "mamba_n_heads": 64,
        "mamba_d_state": 128,
        "mamba_d_head": 64,
    },
}

FUSED_MLP_ROWS = (
    Rule("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), NORM),
    Rule("mlp.linear_fc1.weight", ("shared_mlp.input_linear.weight",), MLP_INPUT),
    Rule("mlp.linear_fc2.weight", ("shared_mlp.output_linear.weight",), MLP_OUTPUT),
)
LAYERS = {
    MAMBA: (
        Rule("norm.weight", ("input_layernorm.weight",), NORM),
        *(Rule(f"mixer.{name}", (f"mamba.{name}",), layout) for name, layout in MAMBA_LAYOUTS.items()),
    ),
    ATTENTION: ATTENTION_ROWS,
    MLP: FUSED_MLP_ROWS,
}
FINAL_NORM = Rule("decoder.final_norm.weight", ("model.norm.weight",), NORM)
# transformers 5 has new names for layers and reads the old ones, which are all that transformers 4 reads.
MAMBA_NAME, ATTENTION_NAME = "mamba", "attention"
MIXERS = {
    MAMBA_NAME: MAMBA,
    ATTENTION_NAME: ATTENTION,
    "linear_attention": MAMBA,
    "full_attention": ATTENTION,
}
POSITIONS = {"rope": "rope", "nope": "none", None: "none"}


def rules(architecture: Architecture) -> list[Rule]:
    """Every parameter of the model, in layer order; a tied model has no head of its own."""
    if not architecture.hybrid_pattern:
        return dense_rules(architecture, ATTENTION_ROWS + FUSED_MLP_ROWS)
    rows = [EMBEDDING]
    for layer, kind in enumerate(architecture.hybrid_pattern):
        rows += [rule.at(f"decoder.layers.{layer}.", f"model.layers.{layer // 2}.") for rule in LAYERS[kind]]
    return [*rows, FINAL_NORM] + ([] if architecture.tie_word_embeddings else [HEAD])


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' GraniteMoeHybridForCausalLM; a ConfigError for what it cannot express."""
    a = architecture
    require_fields(a, activation="swiglu", sliding_window=None)
    config = {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        **sizes_to_config(a),
        "intermediate_size": a.ffn_hidden_size,
        "shared_intermediate_size": a.ffn_hidden_size,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "rope" if a.position_embedding == "rope" else None,
        **rope_to_config(a.rope_theta, a.rope_scaling),
        **multipliers_to_config(a),
    }
    if not a.hybrid_pattern:
        # transformers checks the sizes of Mamba layers even where there are none: these divide everything.
        return config | {"layer_types": [ATTENTION_NAME] * a.num_layers, "mamba_n_heads": 1}
    mixers, mlps = a.hybrid_pattern[::2], a.hybrid_pattern[1::2]
    if set(mlps) != {MLP} or MLP in mixers or len(mixers) != len(mlps):
        raise ConfigError(
            f"hybrid_pattern={a.hybrid_pattern!r}: family=granitemoehybrid alternates a mixer ('M' or '*') and '-'"
        )
    inner = a.mamba_num_heads * a.mamba_head_dim
    if inner % a.hidden_size:
        raise ConfigError(
            f"mamba_num_heads x mamba_head_dim = {inner}: family=granitemoehybrid needs a multiple of "
            f"hidden_size={a.hidden_size}"
        )
    names = {MAMBA: MAMBA_NAME, ATTENTION: ATTENTION_NAME}
    return config | {
        "num_hidden_layers": len(mixers),
        "layer_types": [names[kind] for kind in mixers],
        "mamba_n_heads": a.mamba_num_heads,
        "mamba_d_head": a.mamba_head_dim,
        "mamba_d_state": a.mamba_state_dim,
        "mamba_n_groups": a.mamba_num_groups,
        "mamba_d_conv": CONV_KERNEL,
        "mamba_expand": inner // a.hidden_size,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    }


def from_config(read: ConfigReader) -> Architecture:
    """The architecture of a Granite 4 `config.json`; a ConfigError for experts and keys this model does not have."""
    read.fixed("num_local_experts", 0, default=8)
    read.fixed("normalization_function", "rmsnorm")
    read.unused("num_experts_per_tok", "router_aux_loss_coef", "intermediate_size", "init_method")
    position = read.text("position_embedding_type")
    if position not in POSITIONS:
        raise ConfigError(f"config.json: position_embedding_type={position!r}: 'rope' or 'nope'")
    sizes = dense_sizes(read)
    theta, scaling = read_rope(read, sizes["max_position_embeddings"])
    values = sizes | {
        "family": "granitemoehybrid",
        "ffn_hidden_size": read.size("shared_intermediate_size"),
        "position_embedding": POSITIONS[position],
        "rope_theta": theta,
        "rope_scaling": scaling if POSITIONS[position] == "rope" else None,
        **multipliers(read),
    }
    types = read.names("layer_types") or read.names("layers_block_type") or ["mamba"] * values["num_layers"]
    read.unused("layers_block_type", "mamba_chunk_size")
    unknown = set(types) - MIXERS.keys()
    if unknown or len(types) != values["num_layers"]:
        raise ConfigError(
            f"config.json: layer_types needs num_hidden_layers={values['num_layers']} of 'mamba' and 'attention'; "
            f"it has {len(types)}{f', with {min(unknown)!r}' if unknown else ''}"
        )
    pattern = "".join(MIXERS[kind] + MLP for kind in types)
    values |= _mamba(read, values["hidden_size"], pattern if MAMBA in pattern else None)
    return Architecture(**values)


def _mamba(read: ConfigReader, hidden_size: int, pattern: str | None) -> dict[str, Any]:
    """The hybrid's fields; a dense model carries the keys and uses none of them."""
    keys = ("n_heads", "d_head", "d_state", "n_groups", "d_conv", "expand", "conv_bias", "proj_bias")
    read.unused("time_step_limit", *(f"mamba_{key}" for key in keys))
    if pattern is None:
        return {}
    read.fixed("mamba_d_conv", CONV_KERNEL)
    read.fixed("mamba_conv_bias", True)
    read.fixed("mamba_proj_bias", False)
    read.unlimited("time_step_limit")
    heads, expand = read.size("mamba_n_heads", 128), read.size("mamba_expand", 2)
    inner = expand * hidden_size
    dim = inner // heads if read.get("mamba_d_head", "auto") == "auto" else read.size("mamba_d_head")
    if dim * heads != inner:
        raise ConfigError(
            f"config.json: mamba_n_heads={heads} times mamba_d_head={dim} is {dim * heads}, and transformers needs "
            f"mamba_expand times hidden_size, {inner}"
        )
    return {
        "hybrid_pattern": pattern,
        "num_layers": len(pattern),
        "mamba_num_heads": heads,
        "mamba_head_dim": dim,
        "mamba_state_dim": read.size("mamba_d_state", 256),
        "mamba_num_groups": read.size("mamba_n_groups", 1),
    }
