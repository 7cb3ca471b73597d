"""Granite 4 without experts: the dense Micro and the hybrid H-Micro. Both are published as GraniteMoeHybrid.

Every Hugging Face layer is a mixer (attention or Mamba-2) and an MLP whose gate and up projections are one tensor. A
dense model is a Megatron GPTModel; a hybrid is a MambaModel in which each of those layers becomes two.
"""

from __future__ import annotations

from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP, Architecture
from megatron_prism.models.dense import dense_sizes, require_fields, sizes_to_config
from megatron_prism.models.granite import multipliers, multipliers_to_config
from megatron_prism.models.hf_config import ConfigReader
from megatron_prism.models.mappings import (
    ATTENTION_OUTPUT,
    CONV_KERNEL,
    MAMBA_CONV_BIAS,
    MAMBA_CONV_WEIGHT,
    MAMBA_INPUT,
    MAMBA_NORM,
    MAMBA_OUTPUT,
    MAMBA_PER_HEAD,
    MLP_INPUT,
    MLP_OUTPUT,
    NORM,
    QUERY_KEY_VALUE,
    VOCABULARY,
    Rule,
)
from megatron_prism.models.rope_config import read_rope, rope_to_config

# Megatron's name, Hugging Face's names, and how the rows are arranged; `{}` is the number of the layer. A hybrid's
# Hugging Face layer N is two Megatron layers: the mixer is 2 N and the MLP is 2 N + 1. In a dense model they are one.
EMBEDDING = Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), VOCABULARY)
LAYERS = {
    MAMBA: (
        Rule("decoder.layers.{}.norm.weight", ("model.layers.{}.input_layernorm.weight",), NORM),
        Rule(
            "decoder.layers.{}.mixer.in_proj.weight", ("model.layers.{}.mamba.in_proj.weight",), MAMBA_INPUT
        ),
        Rule(
            "decoder.layers.{}.mixer.conv1d.weight",
            ("model.layers.{}.mamba.conv1d.weight",),
            MAMBA_CONV_WEIGHT,
        ),
        Rule("decoder.layers.{}.mixer.conv1d.bias", ("model.layers.{}.mamba.conv1d.bias",), MAMBA_CONV_BIAS),
        Rule("decoder.layers.{}.mixer.A_log", ("model.layers.{}.mamba.A_log",), MAMBA_PER_HEAD),
        Rule("decoder.layers.{}.mixer.D", ("model.layers.{}.mamba.D",), MAMBA_PER_HEAD),
        Rule("decoder.layers.{}.mixer.dt_bias", ("model.layers.{}.mamba.dt_bias",), MAMBA_PER_HEAD),
        Rule("decoder.layers.{}.mixer.norm.weight", ("model.layers.{}.mamba.norm.weight",), MAMBA_NORM),
        Rule(
            "decoder.layers.{}.mixer.out_proj.weight",
            ("model.layers.{}.mamba.out_proj.weight",),
            MAMBA_OUTPUT,
        ),
    ),
    ATTENTION: (
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
    ),
    MLP: (
        Rule(
            "decoder.layers.{}.pre_mlp_layernorm.weight",
            ("model.layers.{}.post_attention_layernorm.weight",),
            NORM,
        ),
        Rule(
            "decoder.layers.{}.mlp.linear_fc1.weight",
            ("model.layers.{}.shared_mlp.input_linear.weight",),
            MLP_INPUT,
        ),
        Rule(
            "decoder.layers.{}.mlp.linear_fc2.weight",
            ("model.layers.{}.shared_mlp.output_linear.weight",),
            MLP_OUTPUT,
        ),
    ),
}
DENSE_FINAL_NORM = Rule("decoder.final_layernorm.weight", ("model.norm.weight",), NORM)
HYBRID_FINAL_NORM = Rule("decoder.final_norm.weight", ("model.norm.weight",), NORM)
HEAD = Rule("output_layer.weight", ("lm_head.weight",), VOCABULARY)


def rules(architecture: Architecture) -> list[Rule]:
    """Every parameter of the model, in layer order. A tied model has no output head."""
    if architecture.hybrid_pattern:
        layers = [
            rule.in_layer(number, number // 2)
            for number, kind in enumerate(architecture.hybrid_pattern)
            for rule in LAYERS[kind]
        ]
        final_norm = HYBRID_FINAL_NORM
    else:
        dense = LAYERS[ATTENTION] + LAYERS[MLP]
        layers = [rule.in_layer(number) for number in range(architecture.num_layers) for rule in dense]
        final_norm = DENSE_FINAL_NORM
    return [EMBEDDING, *layers, final_norm, *([] if architecture.tie_word_embeddings else [HEAD])]


# transformers 5 has new names for layers and also reads the old ones; transformers 4 reads only the old ones.
MAMBA_NAME, ATTENTION_NAME = "mamba", "attention"
MIXERS = {
    MAMBA_NAME: MAMBA,
    ATTENTION_NAME: ATTENTION,
    "linear_attention": MAMBA,
    "full_attention": ATTENTION,
}
POSITIONS = {"rope": "rope", "nope": "none", None: "none"}


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' GraniteMoeHybridForCausalLM; a ConfigError for a model that it cannot express."""
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
        # transformers checks the sizes of Mamba layers even in a model without them; 1 head divides every size.
        return config | {"layer_types": [ATTENTION_NAME] * a.num_layers, "mamba_n_heads": 1}
    mixers, mlps = a.hybrid_pattern[::2], a.hybrid_pattern[1::2]
    if set(mlps) != {MLP} or MLP in mixers or len(mixers) != len(mlps):
        raise ConfigError(
            f"hybrid_pattern={a.hybrid_pattern!r}: family=granitemoehybrid needs a mixer ('M' or '*') before each '-'"
        )
    inner = a.mamba_num_heads * a.mamba_head_dim
    if inner % a.hidden_size:
        raise ConfigError(
            f"mamba_num_heads x mamba_head_dim = {inner}: must be a multiple of hidden_size={a.hidden_size} for "
            "family=granitemoehybrid"
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
        raise ConfigError(
            f"config.json: position_embedding_type={position!r}: must be 'rope', 'nope' or null"
        )
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
            f"config.json: layer_types must have num_hidden_layers={values['num_layers']} entries, each 'mamba' or "
            f"'attention'; it has {len(types)}{f', including {min(unknown)!r}' if unknown else ''}"
        )
    pattern = "".join(MIXERS[kind] + MLP for kind in types)
    values |= _mamba(read, values["hidden_size"], pattern if MAMBA in pattern else None)
    return Architecture(**values)


def _mamba(read: ConfigReader, hidden_size: int, pattern: str | None) -> dict[str, Any]:
    """The fields of the Mamba layers. A dense model has the keys in its config, too, but does not use them."""
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
            f"config.json: mamba_n_heads={heads} times mamba_d_head={dim} is {dim * heads}, but must be "
            f"mamba_expand={expand} times hidden_size={hidden_size}, {inner}"
        )
    return {
        "hybrid_pattern": pattern,
        "num_layers": len(pattern),
        "mamba_num_heads": heads,
        "mamba_head_dim": dim,
        "mamba_state_dim": read.size("mamba_d_state", 256),
        "mamba_num_groups": read.size("mamba_n_groups", 1),
    }


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
# config.json of the released models, by their Hugging Face names.
PUBLISHED: dict[str, dict[str, Any]] = {
    "ibm-granite/granite-4.0-micro-base": _MICRO
    | {
        "hidden_size": 2560,
        "num_attention_heads": 40,
        "layer_types": ["attention"] * 40,
        "position_embedding_type": "rope",
        "rope_theta": 10000000.0,
        "logits_scaling": 10.0,
        # In the published file, but used by no layer.
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
