"""The two models of the quickstart, the examples and the benchmarks, with one to two million parameters each."""

from __future__ import annotations

from megatron_prism.models.architecture import Architecture

VOCABULARY = 2048
# 1 / sqrt(hidden size). With 0.02, a model this narrow takes far longer to learn to copy.
INITIALIZER_RANGE = 0.088


DENSE = Architecture(
    family="granite",
    vocab_size=VOCABULARY,
    hidden_size=128,
    num_layers=4,
    ffn_hidden_size=384,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=32,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    attention_multiplier=1 / 32**0.5,
    # Granite's multipliers with values that suit this width: all four are used, and training is not slower.
    embedding_multiplier=8.0,
    residual_multiplier=0.5,
    logits_scaling=1.5,
    initializer_range=INITIALIZER_RANGE,
)
HYBRID = Architecture(
    family="nemotron_h",
    vocab_size=VOCABULARY,
    hidden_size=128,
    num_layers=6,
    ffn_hidden_size=384,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=32,
    activation="squared_relu",
    max_position_embeddings=1024,
    tie_word_embeddings=False,
    position_embedding="none",
    hybrid_pattern="M*-M*-",
    mamba_num_heads=8,
    mamba_head_dim=32,
    mamba_state_dim=32,
    mamba_num_groups=2,
    initializer_range=INITIALIZER_RANGE,
)

MODELS = {"dense": DENSE, "hybrid": HYBRID}
