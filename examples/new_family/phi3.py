"""Microsoft's Phi-3, Phi-3.5 and Phi-4 (dense) as a family of megatron_prism, in a package of its own.

The layers are LLaMA's, but a checkpoint has one tensor for the rows of q, k and v, and one for the gate and the up
projection. Models with `longrope` and Phi-4-mini, which rotates only a part of the channels, are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.dense import NO_MULTIPLIERS, dense_sizes, require_fields, sizes_to_config
from megatron_prism.models.families import Family
from megatron_prism.models.hf_config import ConfigReader
from megatron_prism.models.llama import EMBEDDING, FINAL_NORM, HEAD, LAYER
from megatron_prism.models.mappings import MLP_INPUT, QUERY_KEY_VALUE, RowBlock, Rule, Shape
from megatron_prism.models.rope_config import read_rope, rope_to_config


@dataclass(frozen=True)
class FusedQKV:
    """One Hugging Face tensor with all rows of q, then all of k, then all of v; Megatron's rows as in LLaMA."""

    def hf_shapes(self, architecture: Architecture) -> list[Shape]:
        parts = QUERY_KEY_VALUE.hf_shapes(architecture)
        return [(sum(rows for rows, _ in parts), architecture.hidden_size)]

    def row_blocks(self, architecture: Architecture) -> list[RowBlock]:
        queries, keys, _ = (rows for rows, _ in QUERY_KEY_VALUE.hf_shapes(architecture))
        first = (0, queries, queries + keys)
        return [
            RowBlock(0, first[block.part] + block.hf_row, block.megatron_row, block.rows)
            for block in QUERY_KEY_VALUE.row_blocks(architecture)
        ]


QKV, GATE_UP = "decoder.layers.{}.self_attention.linear_qkv.weight", "decoder.layers.{}.mlp.linear_fc1.weight"
FUSED = {
    QKV: Rule(QKV, ("model.layers.{}.self_attn.qkv_proj.weight",), FusedQKV()),
    GATE_UP: Rule(GATE_UP, ("model.layers.{}.mlp.gate_up_proj.weight",), MLP_INPUT),
}


def rules(architecture: Architecture) -> list[Rule]:
    """Every parameter of the model, in layer order: LLaMA's, but for the two fused ones."""
    layer = [FUSED.get(rule.megatron, rule) for rule in LAYER]
    layers = [rule.in_layer(number) for number in range(architecture.num_layers) for rule in layer]
    return [EMBEDDING, *layers, FINAL_NORM, *([] if architecture.tie_word_embeddings else [HEAD])]


def to_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` for transformers' Phi3ForCausalLM; a ConfigError for what it cannot express."""
    a = architecture
    require_fields(a, hybrid_pattern=None, activation="swiglu", position_embedding="rope", **NO_MULTIPLIERS)
    require_fields(a, rope_scaling=None)
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **sizes_to_config(a),
        "intermediate_size": a.ffn_hidden_size,
        "original_max_position_embeddings": a.max_position_embeddings,
        "sliding_window": a.sliding_window,
        # The defaults of transformers lie outside a small vocabulary.
        "pad_token_id": None,
        **rope_to_config(a.rope_theta, None),
    }


def from_config(read: ConfigReader) -> Architecture:
    """The architecture of a Phi-3 `config.json`; a ConfigError names a key that this model does not have."""
    sizes = dense_sizes(read, default_positions=4096) | {
        "norm_epsilon": read.number("rms_norm_eps", 1e-5, minimum=0)
    }
    theta, scaling = read_rope(read, sizes["max_position_embeddings"])
    if scaling is not None:
        raise ConfigError(
            f"config.json: rope_type={scaling.rope_type!r}: transformers' Phi-3 has only 'default' and 'longrope', and "
            "only 'default' is supported"
        )
    has_window = read.get("sliding_window") is not None
    return Architecture(
        family="phi3",
        ffn_hidden_size=read.size("intermediate_size"),
        rope_theta=theta,
        sliding_window=read.size("sliding_window") if has_window else None,
        **sizes,
    )


FAMILY = Family(rules, to_config, from_config)
