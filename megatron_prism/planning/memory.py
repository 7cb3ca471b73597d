"""The memory of one GPU in training, on paper: weights, gradients, optimizer, activations, loss, reference model.

The bytes that a layer keeps for the backward pass follow from its sizes. `tests/planning/test_memory.py` compares them
with what layers really hold, and `benchmarks/memory.py` does so for the layers of every published model. What is an
estimate says so: `working` and `fixed`. The loading of other libraries' kernels is not modelled; backend te keeps about
what backend torch keeps with recompute=none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from megatron_prism.models.architecture import ATTENTION, MAMBA, MLP, Architecture
from megatron_prism.platform.process_groups import ParallelConfig

GB = 1e9
# Bytes of a weight and of an activation.
ELEMENT = {"bf16": 2, "fp32": 4}
# Tokens that the scan of a Mamba layer processes at a time (models/layers/ssd.py), in chunks of 32.
SCAN_TOKENS, SCAN_CHUNK = 2048, 32
# A chunk of the loss (models/layers/token_loss.py): fp32 logits and their gradients in the model's precision.
LOSS_CHUNK = 512 * 2**20 * 3 // 2
# Assumption: CUDA context, communication buffers of NCCL and workspaces of cuBLAS.
FIXED = 2.5 * GB


@dataclass(frozen=True)
class Workload:
    """What a rank computes at once.

    Attributes:
        sequence_length: tokens of a row, before context parallelism cuts it.
        micro_batch_size: rows.
        micro_batches: of a step; a pipeline holds several at a time.
        recompute: as in TrainConfig.
        element: bytes of an activation and of a weight: 2 for bf16, 4 for fp32.
        trainable: as in TrainConfig.
        reference: whether there is a reference model.
        cached_tokens: tokens whose keys and values sampling keeps; they do not exist during an update.
        padding: tokens that attention and scans process per token of the row; below 2 for separated documents.
    """

    sequence_length: int
    micro_batch_size: int = 1
    micro_batches: int = 1
    recompute: str = "none"
    element: int = 2
    trainable: str = "all"
    reference: bool = False
    cached_tokens: int = 0
    padding: float = 1.0


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU that needs the most."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    working: float
    loss: float
    cache: float
    fixed: float = FIXED

    @property
    def total(self) -> float:
        """The peak: an update, or sampling, whose cache takes the place of activations."""
        values = asdict(self)
        update = values["activations"] + values["working"] + values["loss"]
        held = sum(values[name] for name in ("weights", "gradients", "optimizer", "reference", "fixed"))
        return float(held + max(update, values["cache"]))


def training_memory(architecture: Architecture, parallel: ParallelConfig, work: Workload) -> Memory:
    """The memory of the pipeline stage that needs the most."""
    stages = range(parallel.pipeline_model_parallel_size)
    return max(
        (_stage(architecture, parallel, work, stage) for stage in stages), key=lambda found: found.total
    )


def kept_per_token(architecture: Architecture, kind: str, parallel: ParallelConfig, work: Workload) -> float:
    """Bytes per token of the row that a layer keeps for backward on one rank.

    Args:
        kind: ATTENTION, MAMBA or MLP; a layer of a dense model is an attention and an MLP layer.
    """
    a, tp, element = architecture, parallel.tensor_model_parallel_size, work.element
    hidden = a.hidden_size * element / (tp if parallel.sequence_parallel else 1)
    if work.recompute == "full":
        return hidden
    none = work.recompute == "none"
    # The layer's input, the norm's output, and one fp32 number of the norm.
    kept = hidden + (hidden if none else 0) + 4
    if kind == ATTENTION:
        heads, width = a.num_attention_heads, a.head_dim * element
        # Queries, keys, values, output, and the fp32 sum of each row of the softmax.
        return kept + work.padding * (2 * heads * width + 2 * a.num_query_groups * width + 4 * heads) / tp
    if kind == MLP:
        inputs = 2 if a.activation == "swiglu" else 1
        return kept + a.ffn_hidden_size * element * (inputs + (1 if none else 0)) / tp
    inner, state = a.mamba_num_heads * a.mamba_head_dim, a.mamba_num_groups * a.mamba_state_dim
    projected = 2 * inner + 2 * state + a.mamba_num_heads
    states = 4 * inner * a.mamba_state_dim / SCAN_TOKENS
    return kept + work.padding * (element * (projected + inner + (inner if none else 0)) + states) / tp


def layer_parameters(architecture: Architecture, kind: str) -> int:
    """Parameters of a layer's matrices on all ranks."""
    a = architecture
    width, groups = a.num_attention_heads * a.head_dim, a.num_query_groups * a.head_dim
    inner, state = a.mamba_num_heads * a.mamba_head_dim, a.mamba_num_groups * a.mamba_state_dim
    return {
        ATTENTION: a.hidden_size * (2 * width + 2 * groups),
        MLP: a.hidden_size * a.ffn_hidden_size * (3 if a.activation == "swiglu" else 2),
        MAMBA: a.hidden_size * (3 * inner + 2 * state + a.mamba_num_heads) + 5 * (inner + 2 * state),
    }[kind]


def _stage(a: Architecture, parallel: ParallelConfig, work: Workload, stage: int) -> Memory:
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    counts = parallel.layers_per_stage(a.num_layers)
    begin = sum(counts[:stage])
    kinds = "".join(a.kinds_of_layers[begin : begin + counts[stage]])
    first, last = stage == 0, stage == pp - 1
    table = a.padded_vocab_size(tp) * a.hidden_size
    # A tied head on another stage than the embedding is a copy.
    tables = table * (first + (last and not (first and a.tie_word_embeddings)))
    layers = sum(layer_parameters(a, kind) for kind in kinds)
    count = (layers + tables) / tp
    trained = count
    if work.trainable == "attention":
        trained = kinds.count(ATTENTION) * layer_parameters(a, ATTENTION) / tp
    shards = parallel.data_parallel_size * parallel.context_parallel_size
    shards = shards if parallel.use_distributed_optimizer else 1
    tokens = work.sequence_length * work.micro_batch_size / parallel.context_parallel_size
    hidden = tokens * a.hidden_size * work.element

    kept = _kept(a, parallel, work, kinds)
    whole = {kind: kept_per_token(a, kind, parallel, replace(work, recompute="none")) for kind in kinds}
    heaviest = (
        whole.get(ATTENTION, 0.0) + whole.get(MLP, 0.0) if a.hybrid_pattern is None else max(whole.values())
    )
    # Estimate: the gradients inside a layer are as large as what it keeps; a recomputed layer has that, too.
    working = heaviest * tokens * (2 if work.recompute == "full" else 1) + _scan(a, work, kinds) / tp
    if parallel.context_parallel_size > 1 and ATTENTION in kinds:
        # Keys and values of the whole sequence, and their gradients in fp32.
        row = work.sequence_length * work.micro_batch_size
        working += row * 2 * a.num_query_groups * a.head_dim * (work.element + 4) / tp
    return Memory(
        weights=count * work.element,
        gradients=4 * trained,
        # Two moments, and a copy of the weights if they are not fp32.
        optimizer=trained * (12 if work.element < 4 else 8) / shards,
        reference=count * work.element if work.reference else 0.0,
        activations=kept * tokens * _in_flight(parallel, work, stage),
        working=working,
        # The gradient of the head's weights, and the hidden states of all tokens with their gradients.
        loss=(LOSS_CHUNK + table * work.element / tp + 2 * hidden) if last else 0.0,
        cache=work.cached_tokens
        * kinds.count(ATTENTION)
        * 2
        * a.num_query_groups
        * a.head_dim
        * work.element
        / tp,
    )


def _kept(a: Architecture, parallel: ParallelConfig, work: Workload, kinds: str) -> float:
    """Bytes per token that the layers of a stage keep."""
    total = sum(kept_per_token(a, kind, parallel, work) for kind in kinds)
    # With recompute=full, a dense layer keeps one input for its attention and MLP together.
    return total / 2 if work.recompute == "full" and a.hybrid_pattern is None else total


def _in_flight(parallel: ParallelConfig, work: Workload, stage: int) -> float:
    """How many times the activations of all layers of a stage exist (Megatron's 1F1B schedules)."""
    pp, virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if virtual is None:
        return min(pp - stage, work.micro_batches)
    chunks = (pp - stage - 1) * 2 + (virtual - 1) * pp + 1
    return min(chunks, virtual * work.micro_batches) / virtual


def _scan(a: Architecture, work: Workload, kinds: str) -> float:
    """Estimate of what the torch scan makes for one piece of a sequence, and of the gradients, all in fp32."""
    if MAMBA not in kinds:
        return 0.0
    inner = a.mamba_num_heads * a.mamba_head_dim
    per_token = 8 * inner + 2 * inner * a.mamba_state_dim / SCAN_CHUNK + 4 * SCAN_CHUNK * a.mamba_num_heads
    return 2 * 4.0 * per_token * min(SCAN_TOKENS, work.sequence_length) * work.micro_batch_size
