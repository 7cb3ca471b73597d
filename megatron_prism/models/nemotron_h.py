"""Nemotron-H (attention-Mamba hybrid): one mixer per layer, squared ReLU, no positions in attention.

transformers 5.23 clamps Mamba's dt from below at `time_step_min` (modeling_nemotron_h.py:414) and ignores the
config's `time_step_limit`; Megatron and NVIDIA's published code do not clamp. With the default of 0.001 the clamp
changes the logits of tiny models by about 1e-2. Therefore a model that was made here is exported with a
`time_step_min` below every relevant dt (not 0, because transformers takes its logarithm to initialise weights).
Imported configs stay unchanged. Comparisons of logits set `time_step_min` in transformers.
"""

from __future__ import annotations

from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP, Architecture
from megatron_prism.models.dense import NO_MULTIPLIERS, require_fields
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

# Megatron's name, Hugging Face's names, and how the rows are arranged; `{}` is the number of the layer.
EMBEDDING = Rule("embedding.word_embeddings.weight", ("backbone.embeddings.weight",), VOCABULARY)
LAYERS: dict[str, tuple[Rule, ...]] = {
    MAMBA: (
        Rule("decoder.layers.{}.norm.weight", ("backbone.layers.{}.norm.weight",), NORM),
        Rule(
            "decoder.layers.{}.mixer.in_proj.weight",
            ("backbone.layers.{}.mixer.in_proj.weight",),
            MAMBA_INPUT,
        ),
        Rule(
            "decoder.layers.{}.mixer.conv1d.weight",
            ("backbone.layers.{}.mixer.conv1d.weight",),
            MAMBA_CONV_WEIGHT,
        ),
        Rule(
            "decoder.layers.{}.mixer.conv1d.bias", ("backbone.layers.{}.mixer.conv1d.bias",), MAMBA_CONV_BIAS
        ),
        Rule("decoder.layers.{}.mixer.A_log", ("backbone.layers.{}.mixer.A_log",), MAMBA_PER_HEAD),
        Rule("decoder.layers.{}.mixer.D", ("backbone.layers.{}.mixer.D",), MAMBA_PER_HEAD),
        Rule("decoder.layers.{}.mixer.dt_bias", ("backbone.layers.{}.mixer.dt_bias",), MAMBA_PER_HEAD),
        Rule("decoder.layers.{}.mixer.norm.weight", ("backbone.layers.{}.mixer.norm.weight",), MAMBA_NORM),
        Rule(
            "decoder.layers.{}.mixer.out_proj.weight",
            ("backbone.layers.{}.mixer.out_proj.weight",),
            MAMBA_OUTPUT,
        ),
    ),
    ATTENTION: (
        Rule("decoder.layers.{}.input_layernorm.weight", ("backbone.layers.{}.norm.weight",), NORM),
        Rule(
            "decoder.layers.{}.self_attention.linear_qkv.weight",
            (
                "backbone.layers.{}.mixer.q_proj.weight",
                "backbone.layers.{}.mixer.k_proj.weight",
                "backbone.layers.{}.mixer.v_proj.weight",
            ),
            QUERY_KEY_VALUE,
        ),
        Rule(
            "decoder.layers.{}.self_attention.linear_proj.weight",
            ("backbone.layers.{}.mixer.o_proj.weight",),
            ATTENTION_OUTPUT,
        ),
    ),
    MLP: (
        Rule("decoder.layers.{}.pre_mlp_layernorm.weight", ("backbone.layers.{}.norm.weight",), NORM),
        Rule(
            "decoder.layers.{}.mlp.linear_fc1.weight", ("backbone.layers.{}.mixer.up_proj.weight",), MLP_INPUT
        ),
        Rule(
            "decoder.layers.{}.mlp.linear_fc2.weight",
            ("backbone.layers.{}.mixer.down_proj.weight",),
            MLP_OUTPUT,
        ),
    ),
}
FINAL_NORM = Rule("decoder.final_norm.weight", ("backbone.norm_f.weight",), NORM)
HEAD = Rule("output_layer.weight", ("lm_head.weight",), VOCABULARY)


def rules(architecture: Architecture) -> list[Rule]:
    """Every parameter of the model, in layer order. A tied model has no output head."""
    pattern = architecture.hybrid_pattern or ""
    layers = [rule.in_layer(number) for number, kind in enumerate(pattern) for rule in LAYERS[kind]]
    return [EMBEDDING, *layers, FINAL_NORM, *([] if architecture.tie_word_embeddings else [HEAD])]


# A `time_step_min` below every dt.
NO_CLAMP = 1e-30
TYPES = {
    "linear_attention": MAMBA,
    "mamba": MAMBA,
    "full_attention": ATTENTION,
    "attention": ATTENTION,
    "mlp": MLP,
}


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' NemotronHForCausalLM; a ConfigError for a model that it cannot express."""
    a = architecture
    if not a.hybrid_pattern:
        raise ConfigError("family=nemotron_h needs a hybrid_pattern of 'M', '*' and '-'")
    require_fields(a, activation="squared_relu", position_embedding="none", sliding_window=None)
    require_fields(a, **NO_MULTIPLIERS)
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.ffn_hidden_size,
        "num_hidden_layers": a.num_layers,
        "hybrid_override_pattern": a.hybrid_pattern,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_query_groups,
        "head_dim": a.head_dim,
        "mlp_hidden_act": "relu2",
        "layer_norm_epsilon": a.norm_epsilon,
        "max_position_embeddings": a.max_position_embeddings,
        "tie_word_embeddings": a.tie_word_embeddings,
        "initializer_range": a.initializer_range,
        "mamba_num_heads": a.mamba_num_heads,
        "mamba_head_dim": a.mamba_head_dim,
        "ssm_state_size": a.mamba_state_dim,
        "n_groups": a.mamba_num_groups,
        "conv_kernel": CONV_KERNEL,
        "mamba_hidden_act": "silu",
        "use_conv_bias": True,
        "use_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "mamba_proj_bias": False,
        "time_step_min": NO_CLAMP,
    }


def from_config(read: ConfigReader) -> Architecture:
    """The architecture of a Nemotron-H `config.json`, old spelling (pattern) or new (list of layer types).

    Raises:
        ConfigError: for layers, biases or keys this model does not have.
    """
    for key in ("use_bias", "attention_bias", "mlp_bias", "mamba_proj_bias", "residual_in_fp32"):
        read.fixed(key, False)
    for key in ("attention_dropout", "hidden_dropout", "num_nextn_predict_layers"):
        read.fixed(key, 0)
    read.fixed("mlp_hidden_act", "relu2")
    read.fixed("mamba_hidden_act", "silu")
    read.fixed("use_conv_bias", True)
    read.fixed("conv_kernel", CONV_KERNEL)
    read.unlimited("time_step_limit")
    epsilon = read.number("layer_norm_epsilon", 1e-5, minimum=0)
    # Some files have the same number under two keys.
    read.fixed("rms_norm_eps", epsilon)
    # Keys for initialisation, kernels and numerics, and for the experts of later models, which do not exist here.
    read.unused(
        "time_step_min",
        "time_step_rank",
        "time_step_max",
        "time_step_floor",
        "rescale_prenorm_residual",
        "expand",
    )
    read.unused("chunk_size", "use_mamba_kernels", "mamba_ssm_cache_dtype", "num_logits_to_keep")
    read.unused("n_routed_experts", "n_shared_experts", "num_local_experts", "num_experts_per_tok")
    read.unused("moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size")
    read.unused("moe_shared_expert_overlap", "routed_scaling_factor", "n_group", "topk_group")
    read.unused("norm_topk_prob", "mtp_layers_block_type", "mtp_hybrid_override_pattern")

    pattern = _pattern(read)
    if not pattern or set(pattern) - set(LAYERS):
        raise ConfigError(
            f"config.json: layer pattern {pattern!r} is not supported; only Mamba, attention and MLP layers are"
        )
    layers = read.size("num_hidden_layers", len(pattern), null=len(pattern))
    if layers != len(pattern):
        raise ConfigError(
            f"config.json: num_hidden_layers={layers}, but the layer pattern has {len(pattern)} layers; correct one"
        )
    heads = read.size("num_attention_heads")
    # The defaults are those of transformers' NemotronHConfig.
    old_head_dim = read.size("attention_head_dim", 128, null=128)
    return Architecture(
        family="nemotron_h",
        vocab_size=read.size("vocab_size"),
        hidden_size=read.size("hidden_size"),
        num_layers=len(pattern),
        ffn_hidden_size=read.size("intermediate_size"),
        num_attention_heads=heads,
        num_query_groups=read.size("num_key_value_heads", 8, null=heads),
        head_dim=read.size("head_dim", old_head_dim, null=old_head_dim),
        activation="squared_relu",
        norm_epsilon=epsilon,
        max_position_embeddings=read.size("max_position_embeddings", 4096),
        tie_word_embeddings=read.flag("tie_word_embeddings", False),
        initializer_range=read.number("initializer_range", 0.02, minimum=0),
        position_embedding="none",
        hybrid_pattern=pattern,
        mamba_num_heads=read.size("mamba_num_heads"),
        mamba_head_dim=read.size("mamba_head_dim"),
        mamba_state_dim=read.size("ssm_state_size"),
        mamba_num_groups=read.size("n_groups", 8),
    )


def _pattern(read: ConfigReader) -> str:
    """The layers as symbols, from the old key or one of the two new keys. A ConfigError if these differ."""
    found = {}
    if pattern := read.text("hybrid_override_pattern"):
        found["hybrid_override_pattern"] = pattern
    for key in ("layers_block_type", "layer_types"):
        if types := read.names(key):
            found[key] = "".join(TYPES.get(name, "?") for name in types)
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{key} {value!r}" for key, value in found.items())
        raise ConfigError(f"config.json: the lists of layers differ ({listed}); remove the wrong ones")
    return next(iter(found.values()), "")


# config.json of the released models, by their Hugging Face names.
PUBLISHED: dict[str, dict[str, Any]] = {
    "nvidia/Nemotron-H-8B-Base-8K": {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "vocab_size": 131072,
        "hidden_size": 4096,
        "intermediate_size": 21504,
        "num_hidden_layers": 52,
        "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "mlp_hidden_act": "relu2",
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "attention_bias": False,
        "mlp_bias": False,
        "use_bias": False,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "mamba_hidden_act": "silu",
        "mamba_proj_bias": False,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "expand": 2,
        "use_conv_bias": True,
        "chunk_size": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
}
