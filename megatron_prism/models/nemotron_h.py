"""Nemotron-H (attention-Mamba hybrid): its Hugging Face config, read and written, and its parameter table.

transformers 5.23 clamps Mamba's dt from below at `time_step_min` (modeling_nemotron_h.py) and ignores the
config's `time_step_limit`; Megatron and NVIDIA's published code do not clamp. Exports therefore set
`time_step_min` below every dt that matters (not to 0, whose logarithm transformers takes in its weight
initialisation). The clamp at its default 0.001 moves the logits of tiny models by about 1e-2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP, Architecture
from megatron_prism.models.mappings import QUERY_KEY_VALUE, VOCABULARY, Rule

NO_CLAMP = 1e-30
CONV_KERNEL = 4
MIXER_TENSORS = (
    "in_proj.weight",
    "conv1d.weight",
    "conv1d.bias",
    "A_log",
    "D",
    "dt_bias",
    "norm.weight",
    "out_proj.weight",
)

LAYERS: dict[str, tuple[Rule, ...]] = {
    MAMBA: (
        Rule("norm.weight", ("norm.weight",)),
        *(Rule(f"mixer.{n}", (f"mixer.{n}",)) for n in MIXER_TENSORS),
    ),
    ATTENTION: (
        Rule("input_layernorm.weight", ("norm.weight",)),
        Rule(
            "self_attention.linear_qkv.weight",
            ("mixer.q_proj.weight", "mixer.k_proj.weight", "mixer.v_proj.weight"),
            QUERY_KEY_VALUE,
        ),
        Rule("self_attention.linear_proj.weight", ("mixer.o_proj.weight",)),
    ),
    MLP: (
        Rule("pre_mlp_layernorm.weight", ("norm.weight",)),
        Rule("mlp.linear_fc1.weight", ("mixer.up_proj.weight",)),
        Rule("mlp.linear_fc2.weight", ("mixer.down_proj.weight",)),
    ),
}
EMBEDDING = Rule("embedding.word_embeddings.weight", ("backbone.embeddings.weight",), VOCABULARY)
FINAL_NORM = Rule("decoder.final_norm.weight", ("backbone.norm_f.weight",))
HEAD = Rule("output_layer.weight", ("lm_head.weight",), VOCABULARY)


def rules(architecture: Architecture) -> list[Rule]:
    """Every parameter of the model, in layer order; a tied model has no head of its own."""
    rows = [EMBEDDING]
    for layer, symbol in enumerate(architecture.hybrid_pattern or ""):
        rows += [rule.at(f"decoder.layers.{layer}.", f"backbone.layers.{layer}.") for rule in LAYERS[symbol]]
    return [*rows, FINAL_NORM] + ([] if architecture.tie_word_embeddings else [HEAD])


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' NemotronHForCausalLM.

    Raises:
        ConfigError: for an architecture that Nemotron-H cannot express, naming the field.
    """
    a = architecture
    if not a.hybrid_pattern:
        raise ConfigError("family=nemotron_h needs a hybrid_pattern of 'M', '*' and '-'")
    fixed = {
        "activation": "squared_relu",
        "position_embedding": "none",
        "attention_multiplier": None,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    }
    for name, value in fixed.items():
        if getattr(a, name) != value:
            raise ConfigError(f"{name}={getattr(a, name)!r}: family=nemotron_h has {name}={value!r}")
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


def from_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a Nemotron-H `config.json`, old spelling (pattern) or new (list of layer types).

    Raises:
        ConfigError: for layers or biases this model does not have.
    """
    symbols = {
        "linear_attention": MAMBA,
        "mamba": MAMBA,
        "full_attention": ATTENTION,
        "attention": ATTENTION,
        "mlp": MLP,
    }
    pattern = config.get("hybrid_override_pattern")
    if pattern is None:
        types = config.get("layers_block_type") or config.get("layer_types") or []
        pattern = "".join(symbols.get(name, "?") for name in types)
    if not pattern or set(pattern) - set(LAYERS):
        raise ConfigError(
            f"config.json: layer pattern {pattern!r} holds other layers than Mamba, attention and MLP"
        )
    for key in ("use_bias", "attention_bias", "mlp_bias", "mamba_proj_bias"):
        if config.get(key):
            raise ConfigError(f"config.json: {key}=true is not supported")
    if config.get("conv_kernel", CONV_KERNEL) != CONV_KERNEL:
        raise ConfigError(
            f"config.json: conv_kernel={config['conv_kernel']} is not supported; only {CONV_KERNEL}"
        )
    heads = config["num_attention_heads"]
    return Architecture(
        family="nemotron_h",
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=len(pattern),
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config.get("attention_head_dim") or config["hidden_size"] // heads,
        activation="squared_relu",
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        max_position_embeddings=config.get("max_position_embeddings", 4096),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        initializer_range=config.get("initializer_range", 0.02),
        position_embedding="none",
        hybrid_pattern=pattern,
        mamba_num_heads=config["mamba_num_heads"],
        mamba_head_dim=config["mamba_head_dim"],
        mamba_state_dim=config["ssm_state_size"],
        mamba_num_groups=config.get("n_groups", 8),
    )
