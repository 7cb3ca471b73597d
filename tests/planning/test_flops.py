"""FLOPs of kernels against torch's own counter on the real layers.

What the counter does not see: elementwise work (the convolution is one in our kernel), and attention, whose CPU kernel
it does not know. Attention is therefore counted with torch's plain form, which computes the whole square: twice what a
causal kernel does, and without the scores computed again in the backward pass.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_ranks import rank_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.layers import mamba_scan, ssd, token_loss
from megatron_prism.planning import kernel_work
from megatron_prism.planning.flops import flops_per_token, keys_per_query
from megatron_prism.planning.kernel_work import Software, backward_work, forward_work, head_work
from megatron_prism.platform.process_groups import ParallelConfig

TOKENS, PIECE = 256, 64
DENSE = Architecture("granite", 320, 64, 2, 160, 4, 2, 16, max_position_embeddings=TOKENS)
HYBRID = Architecture(
    "nemotron_h", 320, 64, 3, 160, 4, 2, 16, activation="squared_relu", position_embedding="none",
    hybrid_pattern="MM-", mamba_num_heads=8, mamba_head_dim=16, mamba_state_dim=24, mamba_num_groups=2,
    tie_word_embeddings=False, max_position_embeddings=TOKENS,
)  # fmt: skip
TORCH = Software(backend="torch", chunk=ssd.CHUNK)


def counted(architecture: Architecture, recompute: str) -> tuple[float, float]:
    """FLOPs per token that torch counts in the forward and in the backward pass of a model with its loss."""
    with rank_of(ParallelConfig(), 0):
        model = build_model(architecture, torch.float32, backend="torch", recompute=recompute).train()
        tokens = torch.arange(TOKENS)[None] % architecture.vocab_size
        with sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as forward:
                losses = model(tokens, tokens, None, labels=tokens)
            with FlopCounterMode(display=False) as backward:
                losses.sum().backward()
    return forward.get_total_flops() / TOKENS, backward.get_total_flops() / TOKENS


@pytest.fixture(autouse=True)
def long_rows(monkeypatch):
    """Rows of several pieces, and a loss that does not keep its logits, as at real sizes."""
    monkeypatch.setattr(mamba_scan, "SEGMENT", PIECE)
    monkeypatch.setattr(kernel_work, "SEGMENT", PIECE)
    monkeypatch.setattr(token_loss, "KEPT_BYTES", 0)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_hybrid_computes_what_torch_counts(recompute):
    """Exactly, but for the convolution: projections, products of the scan, MLPs, and logits computed twice."""
    kinds = HYBRID.kinds_of_layers
    conv = kinds.count("M") * kernel_work.conv_flops(HYBRID)
    again = 1 if recompute == "full" else 0
    forward, backward = counted(HYBRID, recompute)
    ours = (
        forward_work(HYBRID, kinds, TOKENS, TORCH),
        backward_work(HYBRID, kinds, TOKENS, software=TORCH, recompute=recompute),
    )
    head = head_work(HYBRID, TORCH)
    assert forward == ours[0].flops - conv + head[0].flops
    # The convolution is counted in both halves of the backward pass and in what is computed again.
    assert backward == ours[1].flops - (3 + again) * conv + head[1].flops


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_dense_model_computes_what_torch_counts_but_for_attention(recompute):
    kinds = DENSE.kinds_of_layers
    forward, backward = counted(DENSE, recompute)
    ours = (
        forward_work(DENSE, kinds, TOKENS, TORCH),
        backward_work(DENSE, kinds, TOKENS, software=TORCH, recompute=recompute),
    )
    head = head_work(DENSE, TORCH)
    causal = ours[0].attention
    assert forward == ours[0].matrix + 2 * causal + head[0].flops
    again = 2 * causal if recompute == "full" else 0
    assert backward == ours[1].matrix + again + 2 * 2 * causal + head[1].flops
    assert ours[1].attention == (2.5 + (recompute == "full")) * causal


def test_what_the_model_needs_is_less_than_what_is_computed():
    """MFU counts the recurrence, logits once, and attention's backward pass without the scores."""
    kinds = HYBRID.kinds_of_layers
    done = forward_work(HYBRID, kinds, TOKENS, TORCH) + backward_work(
        HYBRID, kinds, TOKENS, software=TORCH, recompute="none"
    )
    needed = flops_per_token(HYBRID, TOKENS)
    head = sum(work.flops for work in head_work(HYBRID, TORCH))
    # The difference, by hand: a fourth product of the output layer; and per Mamba layer the convolution (three times,
    # and again), the products inside of a chunk (three times, and again), and the state's products again.
    inner, states = 8 * 16, 2 * 24
    scan = 4 * (2 * 32 * (states + inner) + 2 * 4 * (inner + 2 * states)) + 4 * inner * 24
    assert done.flops + head - needed == 2 * 64 * 320 + 2 * scan


def test_a_window_sees_fewer_keys():
    """The mean over all queries, counted one by one, but for the half that a continuous row leaves out."""
    for length, window in ((64, 8), (64, 64), (64, 100), (64, None)):
        mean = sum(min(query + 1, window or length) for query in range(length)) / length
        assert keys_per_query(length, window) == pytest.approx(mean - 0.5, abs=0.5)
    wide, narrow = (replace(DENSE, sliding_window=size) for size in (None, 32))
    assert flops_per_token(narrow, TOKENS) < flops_per_token(wide, TOKENS)
