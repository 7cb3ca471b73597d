"""Sizes that FP8 matrix products of Transformer Engine need, checked for a layout before anything is built."""

from __future__ import annotations

from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig

# transformer_engine/pytorch/utils.py, assert_dim_for_fp8_exec: the last dimension is a multiple of 16, and the product
# of the others a multiple of 8.
INNER, OUTER = 16, 8


def check_fp8_shapes(architecture: Architecture, parallel: ParallelConfig, batch: BatchConfig) -> None:
    """Raise a ParallelError naming the first size of a rank that FP8 does not support."""
    a, tp = architecture, parallel.tensor_model_parallel_size
    attention = a.num_attention_heads * a.head_dim
    rows = batch.micro_batch_size * batch.sequence_length // parallel.context_parallel_size
    tokens = "batch.micro_batch_size x sequence_length / context_parallel_size"
    if parallel.sequence_parallel:
        # The tokens are quantized before they are gathered.
        rows, tokens = rows // tp, f"{tokens} / tensor_model_parallel_size"
    sizes = {
        tokens: (rows, OUTER),
        "hidden_size": (a.hidden_size, INNER),
        "ffn_hidden_size / tensor_model_parallel_size": (a.ffn_hidden_size // tp, INNER),
        "num_attention_heads x head_dim / tensor_model_parallel_size": (attention // tp, INNER),
        "(num_attention_heads + 2 x num_query_groups) x head_dim / tensor_model_parallel_size": (
            (attention + 2 * a.num_query_groups * a.head_dim) // tp,
            OUTER,
        ),
    }
    if a.is_hybrid:
        inner = a.mamba_num_heads * a.mamba_head_dim
        projected = 2 * inner + 2 * a.mamba_num_groups * a.mamba_state_dim + a.mamba_num_heads
        sizes |= {
            "mamba_num_heads x mamba_head_dim / tensor_model_parallel_size": (inner // tp, INNER),
            "the width of Mamba's in_proj / tensor_model_parallel_size": (projected // tp, OUTER),
        }
    for name, (size, multiple) in sizes.items():
        if size % multiple:
            raise ParallelError(
                f"fp8: {name} is {size}, and Transformer Engine multiplies in FP8 only multiples of {multiple}; choose "
                "another layout or batch, or train without fp8"
            )
