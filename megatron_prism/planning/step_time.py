"""The time of a training step, from the work of its kernels and the bytes of its communication.

Nothing here is fitted to a published figure; docs/planning.md says where each share comes from and compares the result
with published throughput. Assumptions without a measurement of their own: `SHAPES`, `SCAN`, `MEMORY`, `GAP`.

What overlaps: gradients are reduced while the last micro-batch's backward pass runs, weights are gathered while the
first forward pass runs, and rings of context parallelism send while attention computes. What does not: tensor
parallelism, exchanges of Mamba heads, gathers of keys and values, sends between pipeline stages, the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from megatron_prism.models.architecture import ATTENTION, MAMBA, Architecture
from megatron_prism.planning.ddp_buffers import bucket_size
from megatron_prism.planning.flops import flops_per_token
from megatron_prism.planning.gpu_profile import GpuProfile
from megatron_prism.planning.kernel_work import Software, Work, backward_work, forward_work, head_work
from megatron_prism.planning.links import gather_seconds, groups, send_seconds
from megatron_prism.planning.parameters import kinds_of_stage
from megatron_prism.planning.state_bytes import StateBytes, state_bytes
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.process_groups import ParallelConfig

# Matrices of a model do not have the best shape, at which the profile's share was measured.
SHAPES = 0.90
# Products of the scan are small (64 to 256 rows), between exponentials in fp32; share of the bf16 peak.
SCAN = 0.20
# Share of the memory's bandwidth that kernels without products reach.
MEMORY = 0.80
# Attention is slower for short rows: by this many tokens over the row, and by the profile's share at 8k. From 1k to 8k
# tokens cuDNN goes from 410 to 529 TFLOP/s (FlashAttention-3, arXiv 2407.08608, figure of the H100, causal).
SHORT_ROW, LONG_ROW = 250, 8192
# Bytes per channel and block that merging partial results of attention reads and writes, forward and backward.
MERGE = (10, 16)
# Seconds between two kernels.
GAP = 3e-6
# Share of a backward pass during which the network works without waiting for gradients.
OVERLAP = 0.9


@dataclass(frozen=True)
class Pass:
    """Seconds of one micro-batch on one rank, by kernel class."""

    matrix: float = 0.0
    attention: float = 0.0
    scan: float = 0.0
    memory: float = 0.0
    tensor: float = 0.0
    context: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the slowest stage.

    Attributes:
        parts: seconds by name; their sum is `seconds`.
        tokens: of a step, on all GPUs.
        gpus: how many.
        flops: that the model needs per token (`flops.flops_per_token`).
    """

    parts: dict[str, float]
    tokens: float
    gpus: int
    flops: float
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", sum(self.parts.values()))

    @property
    def tokens_per_second(self) -> float:
        """Per GPU."""
        return self.tokens / self.seconds / self.gpus

    @property
    def flops_per_second(self) -> float:
        """Of the model, per GPU."""
        return self.flops * self.tokens_per_second


@dataclass(frozen=True)
class Job:
    """What is computed where.

    Attributes:
        states: of each stage, if they are known already.
    """

    architecture: Architecture
    parallel: ParallelConfig
    work: Workload
    gpu: GpuProfile
    software: Software
    states: tuple[StateBytes, ...] = ()

    @property
    def tokens_of_rank(self) -> float:
        """Tokens of a micro-batch that a rank holds, before tensor parallelism shares their channels."""
        work = self.work
        return work.sequence_length * work.micro_batch_size / self.parallel.context_parallel_size

    def state(self, stage: int) -> StateBytes:
        if self.states:
            return self.states[stage]
        work = self.work
        return state_bytes(
            self.architecture,
            self.parallel,
            stage,
            precision=work.kept,
            trainable=work.trainable,
            overlap=work.overlap,
            bucket=work.bucket,
            data_rank=0,
        )


def step_time(job: Job) -> StepTime:
    """The time of one optimizer step of `work.micro_batches` micro-batches per replica."""
    parallel, work = job.parallel, job.work
    stages = range(parallel.pipeline_model_parallel_size)
    passes = [(_pass(job, stage, backward=False), _pass(job, stage, backward=True)) for stage in stages]
    each = [forward.total + backward.total for forward, backward in passes]
    slowest = max(stages, key=each.__getitem__)
    forward, backward = passes[slowest]
    count, chunks = work.micro_batches, parallel.virtual_pipeline_model_parallel_size or 1
    parts = {
        name: count * (getattr(forward, name) + getattr(backward, name))
        for name in (each.name for each in fields(Pass))
    }
    # A pipeline fills and empties once; virtual stages divide that. All stages but the slowest add to it.
    parts["bubble"] = (sum(each) - each[slowest]) / chunks
    parts["pipeline sends"] = _sends(job) * count
    parts |= _update(job, slowest, forward.total, backward.total)
    tokens = float(work.sequence_length * work.micro_batch_size * count * parallel.data_parallel_size)
    return StepTime(
        parts, tokens, parallel.world_size, flops_per_token(job.architecture, work.sequence_length)
    )


def _pass(job: Job, stage: int, *, backward: bool) -> Pass:
    """One pass of a micro-batch on a rank of a stage."""
    a, work, software = job.architecture, job.work, job.software
    kinds = kinds_of_stage(a, job.parallel, stage)
    if backward:
        done = backward_work(a, kinds, work.sequence_length, software=software, recompute=work.recompute)
    else:
        done = forward_work(a, kinds, work.sequence_length, software)
    if stage == job.parallel.pipeline_model_parallel_size - 1:
        done += head_work(a, software)[backward]
    seconds = _compute(job, done, backward)
    seconds["memory"] += _merge(job, "".join(kinds).count(ATTENTION), backward)
    if backward:
        # Weight gradients are added to the buffer: read and written, and written and read before that without a fused
        # product.
        state = job.state(stage)
        moved = state.trained * (2 * work.kept.gradient + (0 if software.backend == "te" else 4))
        seconds["memory"] += moved / (job.gpu.memory_bandwidth * MEMORY)
        if work.trainable == "attention":
            # Half of the products of the backward pass are gradients of weights, most of which are not trained.
            seconds["matrix"] *= 0.5 + 0.5 * state.trained / state.parameters
    return Pass(**seconds, **_communication(job, "".join(kinds), backward, seconds["attention"]))


def _compute(job: Job, done: Work, backward: bool) -> dict[str, float]:
    """Seconds of a pass with this work per token, by kernel class."""
    parallel, gpu = job.parallel, job.gpu
    tp, tokens = parallel.tensor_model_parallel_size, job.tokens_of_rank
    here = tokens / tp
    layers = done.matrix / (gpu.matmul_speed("fp8" if job.work.fp8 else "bf16") * SHAPES)
    head = done.head / (gpu.matmul_speed("bf16") * SHAPES)
    # Without sequence parallelism every tensor-parallel rank has all tokens in norms and residual sums; half of it all.
    moved = done.moved * (here if parallel.sequence_parallel or tp == 1 else (tokens + here) / 2)
    return {
        "matrix": (layers + head) * here,
        "attention": done.attention
        * here
        * _short(job)
        / gpu.attention_speed(job.software.backend, backward),
        "scan": done.scan * here / (gpu.peak["bf16"] * SCAN * gpu.power),
        "memory": moved / (gpu.memory_bandwidth * MEMORY) + done.kernels * GAP,
    }


def _short(job: Job) -> float:
    """How much longer attention takes than in rows of 8k tokens; context-parallel ranks have two chunks of a row."""
    ranks = job.parallel.context_parallel_size
    block = job.work.sequence_length / (2 * ranks if ranks > 1 else 1)
    return (1 + SHORT_ROW / block) / (1 + SHORT_ROW / LONG_ROW)


def _merge(job: Job, layers: int, backward: bool) -> float:
    """Seconds to merge partial results of attention over the blocks of a ring."""
    blocks, parallel = job.parallel.context_parallel_size, job.parallel
    if blocks == 1 or not job.software.merges_blocks:
        return 0.0
    width = (
        job.architecture.num_attention_heads * job.architecture.head_dim / parallel.tensor_model_parallel_size
    )
    again = 1 + (backward and job.work.recompute == "full") * MERGE[0] / MERGE[1]
    moved = job.tokens_of_rank * width * blocks * MERGE[backward] * again
    return layers * (moved / (job.gpu.memory_bandwidth * MEMORY) + 6 * blocks * GAP)


def _communication(job: Job, parts: str, backward: bool, attention_seconds: float) -> dict[str, float]:
    """Seconds of communication inside of a pass that computation does not hide.

    Args:
        parts: kinds of the mixers and MLPs of the stage.
    """
    a, parallel, work, gpu = job.architecture, job.parallel, job.work, job.gpu
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    ranks, tokens = groups(gpu, parallel), job.tokens_of_rank
    again = backward and work.recompute == "full"
    tensor = context = 0.0
    if tp > 1:
        # Each mixer and each MLP gathers its input and scatters the sum of its output; recompute=full does so again.
        exchanges = 2 * len(parts) * (2 if again else 1)
        hidden = tokens * a.hidden_size * work.element
        tensor = gather_seconds(gpu, ranks["tensor"], hidden * exchanges, exchanges)
        if job.software.hidden_tensor_communication:
            # A chunk of each of `tp` parts is computed while the next one is sent; the first one is not hidden.
            tensor /= tp
    if cp > 1 and (count := parts.count(ATTENTION)):
        heads = a.num_attention_heads if job.software.repeated_keys else a.num_query_groups
        keys = tokens * 2 * heads * a.head_dim / tp * work.element
        times = (2 if backward else 1) + (1 if again else 0)
        sent = times * gather_seconds(gpu, ranks["context"], count * keys * cp, count * cp)
        ring = job.software.backend == "te" and a.sliding_window is None
        # The block at hand is computed while the next one is sent.
        context += max(0.0, sent - attention_seconds * (cp - 1) / cp) if ring else sent
    if cp > 1 and (count := parts.count(MAMBA)):
        inner = a.mamba_num_heads * a.mamba_head_dim
        states = 2 * max(a.mamba_num_groups, tp * cp) * a.mamba_state_dim
        # The projection, and two results back, in exchanges of all with all.
        exchanged = tokens * (2 * inner + states + a.mamba_num_heads + 2 * inner) / tp * work.element
        context += (2 if again else 1) * gather_seconds(gpu, ranks["context"], count * exchanged, 3 * count)
    return {"tensor": tensor, "context": context}


def _sends(job: Job) -> float:
    """Seconds of a micro-batch's sends between stages, in both directions. Interleaved pipelines hide them."""
    parallel = job.parallel
    if parallel.pipeline_model_parallel_size == 1 or parallel.virtual_pipeline_model_parallel_size:
        return 0.0
    shard = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    payload = job.tokens_of_rank * job.architecture.hidden_size * job.work.element / shard
    return 2 * send_seconds(job.gpu, groups(job.gpu, parallel)["pipeline"], payload)


def _update(job: Job, stage: int, forward: float, backward: float) -> dict[str, float]:
    """Seconds of reduced gradients, gathered weights and the optimizer, as far as passes do not hide them.

    Args:
        forward, backward: seconds of the passes of one micro-batch.
    """
    parallel, work = job.parallel, job.work
    state, ranks = job.state(stage), groups(job.gpu, parallel)["replicas"]
    kept = work.kept
    messages = max(1.0, state.trained / bucket_size(parallel, work.bucket))
    reduced = gather_seconds(job.gpu, ranks, state.trained * kept.gradient, messages)
    gathered = gather_seconds(job.gpu, ranks, state.trained * kept.weight, messages)
    if not parallel.use_distributed_optimizer:
        reduced, gathered = 2 * reduced, 0.0
    if job.software.sharded_weights:
        # In every micro-batch, gathered for both passes; gradients in bf16.
        in_backward = max(0.0, reduced / 2 + gathered - OVERLAP * backward)
        in_forward = max(0.0, gathered - OVERLAP * forward)
        exposed = {"gradients": in_backward * work.micro_batches, "weights": in_forward * work.micro_batches}
    else:
        hidden = OVERLAP if work.overlap else 0.0
        exposed = {
            "gradients": max(0.0, reduced - hidden * backward),
            "weights": max(0.0, gathered - hidden * forward),
        }
    # Gradients are read for their norm and read again, and cleared for the next step; main weights and moments are read
    # and written; weights are written.
    owned = state.trained / (ranks.size if parallel.use_distributed_optimizer else 1)
    moved = owned * (2 * kept.gradient + 2 * (kept.main + kept.moments) + kept.weight) + state.gradients
    return exposed | {"optimizer": moved / (job.gpu.memory_bandwidth * MEMORY)}
