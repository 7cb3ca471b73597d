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

    Attention: 2 products with s/2 keys on average, once in the forward and twice in the backward pass. SSD: the state
    is written and read (2 x heads x dim x state multiply-adds).

    Args:
        kinds: of each layer, as in `Architecture.kinds_of_layers`.
    """
    a = architecture
    attention_width = a.num_attention_heads * a.head_dim
    attention = a.hidden_size * (2 * attention_width + 2 * a.num_query_groups * a.head_dim)
    attention += attention_width * sequence_length
    mlp = a.hidden_size * a.ffn_hidden_size * (3 if a.activation == "swiglu" else 2)
    inner = a.mamba_num_heads * a.mamba_head_dim
    mamba = a.hidden_size * (3 * inner + 2 * a.mamba_num_groups * a.mamba_state_dim + a.mamba_num_heads)
    mamba += 2 * inner * a.mamba_state_dim
    multiply_adds = {ATTENTION: attention, MAMBA: mamba, MLP: mlp}
    return 6.0 * sum(multiply_adds[part] for kind in kinds for part in kind)
