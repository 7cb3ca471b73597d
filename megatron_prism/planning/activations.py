"""What a rank keeps between the forward and the backward pass, in bytes, and what it needs at a time besides.

The bytes that layers keep follow from their sizes. `tests/planning/test_activations.py` compares them with what the
modules of the `torch` backend really hold, for one rank and for ranks of larger layouts. What is an estimate says so.
"""

from __future__ import annotations

from dataclasses import replace

from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP, Architecture
from megatron_prism.planning.parameters import kinds_of_stage
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.process_groups import ParallelConfig

# Tokens that the scan of a Mamba layer processes at a time (models/layers/ssd.py), in chunks of 32.
SCAN_TOKENS, SCAN_CHUNK = 2048, 32
# The most fp32 logits that the loss makes at a time (models/layers/token_loss.py).
LOSS_CHUNK = 512 * 2**20
# Exponentials of at most this size are kept for the backward pass of the loss.
KEPT_LOGITS = 64 * 2**20
# Per token: label, its row and whether it is elsewhere, the largest logit, the sum, the loss.
LOSS_PER_TOKEN = 33


def kept_per_token(architecture: Architecture, kind: str, parallel: ParallelConfig, work: Workload) -> float:
    """Bytes per token that a rank holds, which a layer keeps for the backward pass.

    Args:
        kind: ATTENTION, MAMBA or MLP; a layer of a dense model is an attention and an MLP layer.
    """
    a, tp, element = architecture, parallel.tensor_model_parallel_size, work.element
    hidden = a.hidden_size * element / (tp if parallel.sequence_parallel else 1)
    if work.recompute == "full":
        return hidden
    # A frozen linear layer has no weight gradient, for which its input would be kept.
    none = work.recompute == "none" and not (work.trainable == "attention" and kind != ATTENTION)
    # The layer's input, the norm's output, and one fp32 number of the norm.
    kept = hidden + (hidden if none else 0) + 4 / (tp if parallel.sequence_parallel else 1)
    if kind == ATTENTION:
        heads, width = a.num_attention_heads, a.head_dim * element
        # The fp32 sum of each row of the softmax. Blocks of context parallelism and of windows compute it again.
        blocks = parallel.context_parallel_size > 1 or has_blocks(a, work.sequence_length)
        sums = 0 if blocks else 4 * heads
        # Queries, keys, values, output.
        return kept + work.padding * (2 * heads * width + 2 * a.num_query_groups * width + sums) / tp
    if kind == MLP:
        inputs = 2 if a.activation == "swiglu" else 1
        return kept + a.ffn_hidden_size * element * (inputs + (1 if none else 0)) / tp
    inner = a.mamba_num_heads * a.mamba_head_dim
    cp = parallel.context_parallel_size
    # A context-parallel rank has whole groups: where there are fewer groups than ranks, several have the same one.
    state = max(a.mamba_num_groups, tp * cp) * a.mamba_state_dim
    projected = 2 * inner + 2 * state + a.mamba_num_heads
    states = 4 * inner * a.mamba_state_dim / SCAN_TOKENS
    # The gate comes back from the exchange of heads and tokens as a copy.
    gate = inner if cp > 1 else 0
    kept += (
        work.padding * (element * (projected + inner + (inner if none else 0)) + states) + element * gate
    ) / tp
    return kept


def has_blocks(architecture: Architecture, sequence_length: int) -> bool:
    """Whether attention is computed in blocks of queries, because a window is shorter than the row."""
    window = architecture.sliding_window
    return window is not None and sequence_length > window


def tokens_of_rank(parallel: ParallelConfig, work: Workload) -> float:
    """Tokens of a micro-batch that a rank holds."""
    return work.sequence_length * work.micro_batch_size / parallel.context_parallel_size


def in_flight(parallel: ParallelConfig, work: Workload, stage: int) -> float:
    """How many times the activations of all layers of a stage exist (Megatron's 1F1B schedules)."""
    pp, virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if virtual is None:
        return min(pp - stage, work.micro_batches)
    chunks = (pp - stage - 1) * 2 + (virtual - 1) * pp + 1
    return min(chunks, virtual * work.micro_batches) / virtual


def held_activations(
    architecture: Architecture, parallel: ParallelConfig, work: Workload, stage: int
) -> float:
    """Bytes that a rank of a pipeline stage holds when its last forward pass before a backward pass has ended."""
    a, tp = architecture, parallel.tensor_model_parallel_size
    tokens, rows = tokens_of_rank(parallel, work), in_flight(parallel, work, stage)
    layers = _kept_by_layers(a, parallel, work, stage) * tokens
    last = stage == parallel.pipeline_model_parallel_size - 1
    hidden = tokens * a.hidden_size * work.element / (tp if parallel.sequence_parallel else 1)
    total = layers * rows
    if a.position_embedding == "rope":
        # Angles in fp32, and half as many cosines and sines.
        total += (4 + work.element) * a.head_dim * work.sequence_length / parallel.context_parallel_size
    if parallel.sequence_parallel:
        # Megatron gathers the input of linear layers into one buffer for all of them (tensor_parallel/layers.py:466).
        total += tokens * a.hidden_size * work.element
    total += hidden * _pipeline_tensors(parallel, rows, stage)
    if stage == 0 and not last and work.trainable == "attention" and work.recompute == "full":
        # The output of the frozen embedding asks for a gradient (trainable.py); both stay until the next backward pass.
        total += 2 * hidden
    if last:
        # The input and the output of the last norm, and the sums of the loss.
        total += 2 * hidden + LOSS_PER_TOKEN * tokens
        logits = 4 * tokens * a.padded_vocab_size(tp) / tp
        total += logits if logits <= KEPT_LOGITS else 0
    return total


def _pipeline_tensors(parallel: ParallelConfig, rows: float, stage: int) -> float:
    """How many tensors of hidden states exist between stages: results of micro-batches in flight, and buffers."""
    stages, virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if stages == 1:
        return 0
    if virtual:
        return rows * virtual + 3
    if stage == stages - 1:
        return 2
    return rows + (2 if stage == 0 else 4)


def working_bytes(architecture: Architecture, parallel: ParallelConfig, work: Workload, stage: int) -> float:
    """Estimate of what backward passes of layers need beyond everything that is kept, at their peak.

    Layers run from the last to the first, and each frees what it kept: a heavy layer that comes late adds less.
    """
    a, tokens = architecture, tokens_of_rank(parallel, work)
    needed = freed = 0.0
    for kind in reversed(kinds_of_stage(a, parallel, stage)):
        # A recomputed layer has its activations again.
        inside = 0.0
        if work.recompute == "full":
            whole = replace(work, recompute="none")
            inside = sum(kept_per_token(a, part, parallel, whole) for part in kind) * tokens
        for part in reversed(kind):
            needed = max(needed, inside + _gradients(a, part, parallel, work) - freed)
            if work.recompute == "full":
                inside -= kept_per_token(a, part, parallel, whole) * tokens
            else:
                freed += kept_per_token(a, part, parallel, work) * tokens
        if work.recompute == "full":
            freed += kept_per_token(a, kind[0], parallel, work) * tokens
    if stage == 0 and work.trainable == "all":
        # At the end the gradient of the embedding, before it is added to the buffer.
        tp = parallel.tensor_model_parallel_size
        needed = max(needed, a.padded_vocab_size(tp) / tp * a.hidden_size * work.element - freed)
    return needed


def _gradients(a: Architecture, part: str, parallel: ParallelConfig, work: Workload) -> float:
    """Estimate of the gradients and copies that the backward pass of a layer needs at a time.

    Args:
        part: ATTENTION, MLP or MAMBA.
    """
    tp, cp, tokens = (
        parallel.tensor_model_parallel_size,
        parallel.context_parallel_size,
        tokens_of_rank(parallel, work),
    )
    # The gradients of the layer's output and input.
    hidden = 2 * tokens * a.hidden_size * work.element
    shard = tp if parallel.sequence_parallel else 1
    # Under sequence parallelism the input of a linear layer and its gradient are gathered.
    needed = hidden / shard + (hidden if parallel.sequence_parallel else 0)
    if part == MLP:
        # The gradient of the activation function's input. Its output is freed before, or was computed again.
        widths = (2 if a.activation == "swiglu" else 1) + (work.recompute == "selective")
        return needed + tokens * a.ffn_hidden_size * widths * work.element / tp
    whole = kept_per_token(a, part, parallel, replace(work, recompute="none", trainable="all")) * tokens
    if part == ATTENTION:
        needed += whole
        if cp > 1:
            # Keys and values of the whole row, and their gradients in fp32.
            row = work.sequence_length * work.micro_batch_size
            needed += row * 2 * a.num_query_groups * a.head_dim * (work.element + 4) / tp
        return needed
    needed += whole + _scan(a, work) / (tp * cp)
    if cp > 1:
        # Gradients that are exchanged between tokens and heads: of the projection, of the gate, and of the result.
        inner = a.mamba_num_heads * a.mamba_head_dim
        states = 2 * max(a.mamba_num_groups, tp * cp) * a.mamba_state_dim
        needed += tokens * (4 * inner + states + a.mamba_num_heads) * work.element / tp
    return needed


def loss_bytes(architecture: Architecture, parallel: ParallelConfig, work: Workload, stage: int) -> float:
    """Estimate of what the loss needs at a time, on the last stage."""
    if stage != parallel.pipeline_model_parallel_size - 1:
        return 0.0
    a, tp = architecture, parallel.tensor_model_parallel_size
    table = a.padded_vocab_size(tp) * a.hidden_size * work.element / tp
    hidden = tokens_of_rank(parallel, work) * a.hidden_size * work.element
    logits = min(LOSS_CHUNK, 4 * tokens_of_rank(parallel, work) * a.padded_vocab_size(tp) / tp)
    # A chunk of logits and their gradients in the model's precision, the gradient of the head's weights, and the hidden
    # states of all tokens with their gradients.
    return 1.5 * logits + table + 2 * hidden


def cache_bytes(architecture: Architecture, parallel: ParallelConfig, work: Workload, stage: int) -> float:
    """Keys, values and Mamba states of sampling (models/layers/decode_cache.py, mamba.py)."""
    a, tp = architecture, parallel.tensor_model_parallel_size
    kinds = "".join(kinds_of_stage(a, parallel, stage))
    keys = work.cached_tokens * kinds.count(ATTENTION) * 2 * a.num_query_groups * a.head_dim * work.element
    inner = a.mamba_num_heads * a.mamba_head_dim
    # A state in fp32, and the last four inputs of the convolution.
    state = 4 * inner * a.mamba_state_dim
    state += 4 * work.element * (inner + 2 * a.mamba_num_groups * a.mamba_state_dim)
    return (keys + work.cached_texts * kinds.count(MAMBA) * state) / tp


def _kept_by_layers(a: Architecture, parallel: ParallelConfig, work: Workload, stage: int) -> float:
    """Bytes per token that the layers of a stage keep."""
    parts = "".join(kinds_of_stage(a, parallel, stage))
    first_input = 0.0
    if stage == 0 and work.trainable == "attention" and work.recompute != "full":
        # Nothing before the first trained layer needs a gradient, so nothing is kept there, nor by that layer's norm.
        parts = parts[parts.index(ATTENTION) :] if ATTENTION in parts else ""
        if parts and work.recompute == "none":
            shard = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
            first_input = (a.hidden_size * work.element + 4) / shard
    total = sum(kept_per_token(a, part, parallel, work) for part in parts) - first_input
    # With recompute=full, a dense layer keeps one input for its attention and MLP together.
    return total / 2 if work.recompute == "full" and a.hybrid_pattern is None else total


def _scan(a: Architecture, work: Workload) -> float:
    """Estimate of what the torch scan makes for one piece of a sequence, and half as many gradients, all in fp32."""
    inner = a.mamba_num_heads * a.mamba_head_dim
    per_token = 8 * inner + 2 * inner * a.mamba_state_dim / SCAN_CHUNK + 4 * SCAN_CHUNK * a.mamba_num_heads
    return 1.5 * 4.0 * per_token * min(SCAN_TOKENS, work.sequence_length) * work.micro_batch_size
