"""The work of a token in each class of kernels: what is really computed, forward and backward, on all ranks together.

`flops.flops_per_token` is the work that the model needs, from which MFU follows. This is the work that its kernels do:
with the chunks of the Mamba scan, its convolution, logits that are computed twice, attention that is computed again
inside its backward pass, and what `recompute` adds. `tests/planning/test_flops.py` compares it with torch's counter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP, Architecture
from megatron_prism.planning.flops import keys_per_query
from megatron_prism.planning.parameters import TAPS

# Tokens of a chunk of the scan: mamba_ssm's kernels (models/layers/fused_scan.py), and the torch scan on a GPU.
FUSED_CHUNK, TORCH_CHUNK = 256, 128
# The backward pass of attention computes the scores again: five products, of which the forward pass has two.
ATTENTION_BACKWARD = 2.5
# Longer rows than this compute convolution and scan again in the torch backend's backward pass (layers/ssd.py).
SEGMENT = 2048
BF16 = 2


@dataclass(frozen=True)
class Work:
    """Per token.

    Attributes:
        matrix: FLOPs of linear layers inside of layers.
        head: FLOPs of the output layer.
        attention: FLOPs of attention's products.
        scan: FLOPs of the products of the Mamba scan, and of its convolution.
        moved: bytes that kernels without products read and write.
        kernels: how many kernels are launched per layer and micro-batch (not per token).
    """

    matrix: float = 0.0
    head: float = 0.0
    attention: float = 0.0
    scan: float = 0.0
    moved: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.matrix + other.matrix,
            self.head + other.head,
            self.attention + other.attention,
            self.scan + other.scan,
            self.moved + other.moved,
            self.kernels + other.kernels,
        )

    def times(self, count: int) -> Work:
        """The work of `count` such layers."""
        return Work(
            self.matrix * count,
            self.head * count,
            self.attention * count,
            self.scan * count,
            self.moved * count,
            self.kernels * count,
        )

    @property
    def flops(self) -> float:
        return self.matrix + self.head + self.attention + self.scan


@dataclass(frozen=True)
class Software:
    """Which kernels run.

    Attributes:
        backend: 'te' or 'torch', whose attention differs.
        fused: whether activation functions and rotary positions are one kernel each: te, or `compile=true`.
        chunk: tokens of a chunk of the scan.
        loss: 'chunked': this project's (models/layers/token_loss.py). Other programs keep the logits: 'fp32' as
            Megatron-Core's vocab_parallel_cross_entropy does (cross_entropy.py:38), 'fused' in bf16.
        fp8: whether linear layers compute in FP8, whose inputs and gradients are converted first.
        hidden_tensor_communication: a program that computes while tensor-parallel ranks communicate.
        merges_blocks: context-parallel ranks merge the partial results of each other's keys, as a ring does.
        repeated_keys: every query head gets its own copy of keys and values before attention.
        sharded_weights: FSDP: weights are gathered for every pass, and gradients are reduced in every micro-batch.
    """

    backend: str = "te"
    fused: bool = True
    chunk: int = FUSED_CHUNK
    loss: str = "chunked"
    fp8: bool = False
    hidden_tensor_communication: bool = False
    merges_blocks: bool = True
    repeated_keys: bool = False
    sharded_weights: bool = False


def forward_work(a: Architecture, kinds: Sequence[str], length: int, software: Software) -> Work:
    """The forward pass of some layers.

    Args:
        kinds: of each layer, as in `Architecture.kinds_of_layers`.
        length: tokens of a row.
    """
    total = Work()
    for part, count in Counter("".join(kinds)).items():
        total += _forward(a, part, length, software).times(count)
    return total


def backward_work(
    a: Architecture, kinds: Sequence[str], length: int, *, software: Software, recompute: str
) -> Work:
    """The backward pass of some layers, with what it computes again."""
    total = Work()
    for part, count in Counter("".join(kinds)).items():
        once = _forward(a, part, length, software)
        again = (
            once.scan if software.backend == "torch" and (recompute == "selective" or length > SEGMENT) else 0
        )
        found = Work(
            matrix=2 * once.matrix,
            attention=ATTENTION_BACKWARD * once.attention,
            scan=2 * once.scan + again,
            moved=_moved_backward(a, part, software)
            + (_moved_again(a, part) if recompute == "selective" else 0),
            kernels=1.6 * once.kernels,
        )
        total += (found + once if recompute == "full" else found).times(count)
    return total


def head_work(a: Architecture, software: Software) -> tuple[Work, Work]:
    """The output layer and the loss, forward and backward."""
    product = 2.0 * a.hidden_size * a.vocab_size
    if software.loss != "chunked":
        # bf16 logits are read twice and become gradients in place; or they are converted, and their maximum,
        # difference, exponentials and sum are passes of their own, as are the gradients and their conversion.
        passes = (4, 4) if software.loss == "fused" else (34, 14)
        forward = Work(head=product, moved=passes[0] * a.vocab_size, kernels=8)
        return forward, Work(head=2 * product, moved=passes[1] * a.vocab_size, kernels=8)
    # models/layers/token_loss.py: to fp32, maximum, difference, exponential, sum; and the same again with the products
    # by the gradient, and back to bf16.
    forward = Work(head=product, moved=32 * a.vocab_size, kernels=16)
    return forward, Work(head=3 * product, moved=36 * a.vocab_size, kernels=24)


def scan_flops(a: Architecture, chunk: int) -> float:
    """FLOPs of the products of the scan per token of the forward pass; the backward pass has twice as many.

    In a chunk every query meets every key once per group, and every value once per head (ssd_chunks.py); the state is
    written and read once.
    """
    heads, groups = a.mamba_num_heads * a.mamba_head_dim, a.mamba_num_groups * a.mamba_state_dim
    return 2.0 * chunk * (groups + heads) + 4.0 * heads * a.mamba_state_dim


def conv_flops(a: Architecture) -> float:
    """FLOPs of the convolution per token of the forward pass."""
    mixed = a.mamba_num_heads * a.mamba_head_dim + 2 * a.mamba_num_groups * a.mamba_state_dim
    return 2.0 * TAPS * mixed


def _forward(a: Architecture, part: str, length: int, software: Software) -> Work:
    hidden, width = a.hidden_size, a.num_attention_heads * a.head_dim
    groups = a.num_query_groups * a.head_dim
    # Norm and residual sum.
    moved = BF16 * (2 + 3) * hidden
    cast = 4 if software.fp8 else 0
    if part == ATTENTION:
        rope = (2 if software.fused else 6) * (width + groups) if a.position_embedding == "rope" else 0
        return Work(
            matrix=2.0 * hidden * (2 * width + 2 * groups),
            attention=4.0 * width * keys_per_query(length, a.sliding_window),
            moved=moved + BF16 * (rope + _copies(a, software)) + cast * (hidden + width),
            kernels=10,
        )
    if part == MLP:
        gated = a.activation == "swiglu"
        inner = a.ffn_hidden_size
        passes = (3 if software.fused else 5) if gated else (2 if software.fused else 4)
        return Work(
            matrix=2.0 * hidden * inner * (3 if gated else 2),
            moved=moved + BF16 * passes * inner + cast * (hidden + inner),
            kernels=7,
        )
    assert part == MAMBA
    inner = a.mamba_num_heads * a.mamba_head_dim
    states = a.mamba_num_groups * a.mamba_state_dim
    mixed = inner + 2 * states
    return Work(
        matrix=2.0 * hidden * (2 * inner + 2 * states + a.mamba_num_heads + inner),
        scan=scan_flops(a, software.chunk) + conv_flops(a),
        moved=moved
        + BF16 * (2 * mixed + mixed + inner + 3 * inner)
        + _scan_bytes(a, software)
        + cast * (hidden + inner),
        kernels=16,
    )


def _copies(a: Architecture, software: Software) -> float:
    """Numbers read and written to repeat keys and values, or to add their gradients."""
    groups, width = a.num_query_groups * a.head_dim, a.num_attention_heads * a.head_dim
    return 2.0 * (groups + width) if software.repeated_keys else 0.0


def _scan_bytes(a: Architecture, software: Software) -> float:
    """fp32 tensors of the scan: states of chunks, written and read twice; in plain torch scores and decays, too."""
    inner = a.mamba_num_heads * a.mamba_head_dim
    states = 4.0 * 3 * inner * a.mamba_state_dim / software.chunk
    if software.backend == "torch" and software.chunk == TORCH_CHUNK:
        return states + 4.0 * (6 * a.mamba_num_heads * software.chunk + 10 * inner)
    return states + 4.0 * 2 * a.mamba_num_groups * software.chunk


def _moved_backward(a: Architecture, part: str, software: Software) -> float:
    """Bytes of the backward pass: norms, sums of gradients, activation functions, rotary positions."""
    hidden, width, groups = a.hidden_size, a.num_attention_heads * a.head_dim, a.num_query_groups * a.head_dim
    moved, cast = BF16 * (3 + 3) * hidden, 4 if software.fp8 else 0
    if part == ATTENTION:
        rope = (2 if software.fused else 6) * (width + groups) if a.position_embedding == "rope" else 0
        return float(moved + BF16 * (rope + _copies(a, software)) + cast * (width + 2 * groups + hidden))
    if part == MLP:
        gated, inner = a.activation == "swiglu", a.ffn_hidden_size
        passes = (5 if software.fused else 9) if gated else (3 if software.fused else 6)
        return float(moved + BF16 * passes * inner + cast * ((2 if gated else 1) * inner + hidden))
    inner, states = a.mamba_num_heads * a.mamba_head_dim, a.mamba_num_groups * a.mamba_state_dim
    mixed = inner + 2 * states
    inside = BF16 * (5 * mixed + 2 * (mixed + inner) + 7 * inner) + 2.5 * _scan_bytes(a, software)
    return moved + inside + cast * (inner + mixed + hidden)


def _moved_again(a: Architecture, part: str) -> float:
    """Bytes of what recompute=selective computes again: a norm, an activation function, a gated norm."""
    inner = {ATTENTION: 0, MLP: (3 if a.activation == "swiglu" else 2) * a.ffn_hidden_size}
    mamba = 3 * a.mamba_num_heads * a.mamba_head_dim
    return float(BF16 * (2 * a.hidden_size + inner.get(part, mamba)))
