"""The models of the GPU benchmark: about a billion parameters each, and tiny ones with the same features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron_prism.models.architecture import Architecture

LENGTHS = {"8k": 8192, "32k": 32768, "128k": 131072}
COMMON: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_query_groups": 8,
    "head_dim": 128,
    "max_position_embeddings": LENGTHS["128k"],
}
# Granite-like: its multipliers, tied embeddings, grouped queries. 1.07 billion parameters.
DENSE = Architecture(
    "granite",
    num_layers=16,
    ffn_hidden_size=8192,
    rope_theta=1e7,
    attention_multiplier=1 / 128,
    embedding_multiplier=12.0,
    residual_multiplier=0.22,
    logits_scaling=8.0,
    **COMMON,
)
# Granite-4-H and Nemotron-H-like: one attention layer for nine of Mamba-2, an MLP after each. 1.5 billion parameters.
HYBRID = Architecture(
    "nemotron_h",
    num_layers=40,
    ffn_hidden_size=8192,
    activation="squared_relu",
    position_embedding="none",
    hybrid_pattern="M-M-M-M-*-" * 4,
    mamba_num_heads=64,
    mamba_head_dim=64,
    mamba_state_dim=128,
    mamba_num_groups=8,
    **COMMON,
)
MODELS = {"dense": DENSE, "hybrid": HYBRID}
_TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
TINY_MODELS = {
    "dense": replace(DENSE, num_layers=2, **_TINY),
    "hybrid": replace(
        HYBRID,
        num_layers=3,
        hybrid_pattern="M-*",
        mamba_num_heads=8,
        mamba_head_dim=8,
        mamba_state_dim=8,
        mamba_num_groups=2,
        **_TINY,
    ),
}
TINY_LENGTHS = {"8k": 32, "32k": 64, "128k": 128}
