"""FP8's sizes are accepted and refused as by Transformer Engine, for the matrices that Megatron-Core really builds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_imitation.te_checks import FP8_PRODUCT, Product
from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_on_meta
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.fp8_shapes import check_fp8_shapes

DENSE = Architecture("llama", 1024, 64, 2, 128, 4, 2, 16, max_position_embeddings=256)
HYBRID = Architecture(
    "nemotron_h", 1024, 64, 4, 128, 4, 2, 16, activation="squared_relu", position_embedding="none",
    hybrid_pattern="M-M*", mamba_num_heads=8, mamba_head_dim=16, mamba_state_dim=16, mamba_num_groups=2,
    max_position_embeddings=256, tie_word_embeddings=False,
)  # fmt: skip
BATCH = BatchConfig(64, 1, 2)
ONE = ParallelConfig()
MODELS = {
    "dense": DENSE,
    "hybrid": HYBRID,
    "narrow": replace(DENSE, hidden_size=40),
    "odd MLP": replace(DENSE, ffn_hidden_size=72),
    "odd heads": replace(DENSE, head_dim=6),
    "odd Mamba": replace(HYBRID, mamba_num_heads=4, mamba_head_dim=6),
    "odd Mamba heads": replace(HYBRID, mamba_num_heads=4, mamba_head_dim=16),
}
LAYERS = ("linear_qkv", "linear_proj", "in_proj", "out_proj", "linear_fc1", "linear_fc2")


def products(model: Architecture) -> list[Product]:
    """The weights of the layers that compute in FP8, and their input."""
    with session():
        weights = dict(build_on_meta(model).named_parameters())
    found = [
        Product(name, *weight.shape)
        for name, weight in weights.items()
        if name.endswith(tuple(f"{layer}.weight" for layer in LAYERS))
    ]
    return [*found, Product("input", BATCH.micro_batch_size * BATCH.sequence_length, model.hidden_size)]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_refused_if_transformer_engine_would_refuse_it(name):
    model = MODELS[name]
    refused = [product.name for product in products(model) if FP8_PRODUCT.refuses(product)]
    assert bool(refused) == (name not in ("dense", "hybrid")), refused
    if refused:
        with pytest.raises(ParallelError, match="multiplies in FP8 only multiples of"):
            check_fp8_shapes(model, ONE, BATCH)
    else:
        check_fp8_shapes(model, ONE, BATCH)


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(context_parallel_size=16),
        ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=8, sequence_parallel=True),
    ],
)
def test_too_few_tokens_on_a_rank_are_refused(parallel):
    with pytest.raises(ParallelError, match=r"micro_batch_size x sequence_length .* is 4, "):
        check_fp8_shapes(DENSE, parallel, BATCH)


def test_eight_tokens_on_a_rank_are_enough():
    check_fp8_shapes(DENSE, ParallelConfig(context_parallel_size=8), BATCH)
