"""The FLOPs of training a model, from which TFLOP/s and MFU follow."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP, Architecture


def flops_per_token(architecture: Architecture, sequence_length: int) -> float:
    """Training FLOPs per token: 6 per matrix weight, plus causal attention and the Mamba state products.

    The output layer counts; the embedding lookup does not.
    """
    a = architecture
    return flops_of_layers(a, a.kinds_of_layers, sequence_length) + flops_of_output(a)


def flops_of_output(architecture: Architecture) -> float:
    """Training FLOPs per token of the output layer."""
    return 6.0 * architecture.hidden_size * architecture.vocab_size


def flops_of_layers(architecture: Architecture, kinds: Sequence[str], sequence_length: int) -> float:
    """Training FLOPs per token of some layers.

    Attention: 2 products with the keys that a query sees, once in the forward and twice in the backward pass. SSD: the
    state is written and read (2 x heads x dim x state multiply-adds), as in the recurrence; the products of a scan in
    chunks are how it is computed, not what the model needs (kernel_work.py counts them).

    Args:
        kinds: of each layer, as in `Architecture.kinds_of_layers`.
    """
    a = architecture
    attention_width = a.num_attention_heads * a.head_dim
    attention = float(a.hidden_size) * (2 * attention_width + 2 * a.num_query_groups * a.head_dim)
    attention += 2 * attention_width * keys_per_query(sequence_length, a.sliding_window)
    mlp = a.hidden_size * a.ffn_hidden_size * (3 if a.activation == "swiglu" else 2)
    inner = a.mamba_num_heads * a.mamba_head_dim
    mamba = a.hidden_size * (3 * inner + 2 * a.mamba_num_groups * a.mamba_state_dim + a.mamba_num_heads)
    mamba += 2 * inner * a.mamba_state_dim
    multiply_adds = {ATTENTION: attention, MAMBA: mamba, MLP: mlp}
    return 6.0 * sum(multiply_adds[part] for kind in kinds for part in kind)


def keys_per_query(sequence_length: int, window: int | None) -> float:
    """Keys that a query of a causal row sees on average: half of the row, or less with a sliding window."""
    if window is None or window >= sequence_length:
        return sequence_length / 2
    return window - window**2 / (2 * sequence_length)
