"""The config keys that the decoders of several families share."""

from __future__ import annotations

from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import MOST_LAYERS, Architecture
from megatron_prism.models.hf_config import ConfigReader

# The neutral values of Granite's multipliers, which every other family must have.
NO_MULTIPLIERS: dict[str, Any] = {
    "attention_multiplier": None,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
# Hugging Face's `hidden_act` of each activation.
HIDDEN_ACT = {"swiglu": "silu", "squared_relu": "relu2"}


def dense_sizes(
    config: ConfigReader,
    *,
    activation: str = "swiglu",
    default_groups: int | None = None,
    default_positions: int = 2048,
) -> dict[str, Any]:
    """The architecture fields whose keys are the same in every decoder's config.

    Args:
        activation: the only activation of the family.
        default_groups: num_key_value_heads if the config does not have the key (None: as many as heads).
        default_positions: max_position_embeddings if the config does not have the key.

    Raises:
        ConfigError: for a missing size, or for biases or an activation that this model does not have.
    """
    config.fixed("hidden_act", HIDDEN_ACT[activation])
    config.fixed("attention_bias", False)
    config.fixed("mlp_bias", False)
    config.fixed("attention_dropout", 0.0)
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    own_width = max(1, hidden // heads)
    return {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": hidden,
        "num_layers": config.size("num_hidden_layers", maximum=MOST_LAYERS),
        "num_attention_heads": heads,
        # In transformers null means as many as heads, while an absent key may mean another number.
        "num_query_groups": config.size("num_key_value_heads", default_groups or heads, null=heads),
        "head_dim": config.size("head_dim", own_width, null=own_width),
        "activation": activation,
        "norm_epsilon": config.number("rms_norm_eps", 1e-6, minimum=0),
        "max_position_embeddings": config.size("max_position_embeddings", default_positions),
        "tie_word_embeddings": config.flag("tie_word_embeddings", False),
        "initializer_range": config.number("initializer_range", 0.02, minimum=0),
    }


def sizes_to_config(architecture: Architecture) -> dict[str, Any]:
    """The keys that `dense_sizes` reads."""
    a = architecture
    return {
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "num_hidden_layers": a.num_layers,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_query_groups,
        "head_dim": a.head_dim,
        "hidden_act": HIDDEN_ACT[a.activation],
        "rms_norm_eps": a.norm_epsilon,
        "max_position_embeddings": a.max_position_embeddings,
        "tie_word_embeddings": a.tie_word_embeddings,
        "initializer_range": a.initializer_range,
        "attention_bias": False,
    }


def require_fields(architecture: Architecture, **needed: Any) -> None:
    """Raise a ConfigError naming the first field with a value that the family's config cannot express."""
    for name, value in needed.items():
        if getattr(architecture, name) != value:
            raise ConfigError(
                f"{name}={getattr(architecture, name)!r}: the config.json of family={architecture.family} can express "
                f"only {name}={value!r}"
            )
