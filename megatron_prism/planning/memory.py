"""The memory of one GPU, on paper: weights, gradients, optimizer, activations, loss, caches, and what libraries take.

Weights, gradients and optimizer state are exact (state_bytes.py). What layers keep follows from their sizes
(activations.py). The rest are assumptions, each with its source: `CONTEXT`, `COMMUNICATOR` and `SLACK`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from megatron_prism.models.architecture import Architecture
from megatron_prism.planning.activations import (
    cache_bytes,
    held_activations,
    loss_bytes,
    working_bytes,
)
from megatron_prism.planning.parameters import stage_parameters
from megatron_prism.planning.state_bytes import StateBytes, state_bytes
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.process_groups import ParallelConfig

GB = 1e9
# Assumption: the CUDA context with loaded kernels, about 0.5 GB on an H100, and workspaces of cuBLAS, 32 MiB per
# handle and stream on Hopper (PyTorch documentation, CUBLAS_WORKSPACE_CONFIG), for TE and torch on several streams.
CONTEXT = 0.9 * GB
# Assumption for each communicator of more than one rank: 4 MiB per connection (NCCL_BUFFSIZE of NCCL's documentation),
# 16 channels with four connections each: the two neighbours of a ring and of a tree.
COMMUNICATOR = 16 * 4 * 4 * 2**20
# Assumption: share of what comes and goes that PyTorch's caching allocator holds in blocks of other sizes, with
# expandable segments (PyTorch documentation, memory management).
SLACK = 0.05


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        activations: what is kept for the backward pass.
        working: what the backward pass of a layer needs besides.
        loss: what the loss needs besides; it comes before the layers' backward passes, so it and `working` do not add.
        cache: of sampling, which takes the place of activations.
        update: what the optimizer's step makes.
        communication: buffers of NCCL.
        fixed: CUDA's context and workspaces.
        slack: of the allocator.
    """

    weights: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    working: float
    loss: float
    cache: float
    update: float = 0.0
    communication: float = 0.0
    fixed: float = CONTEXT

    @property
    def held(self) -> float:
        """What exists from the first step to the last."""
        names = ("weights", "gradients", "optimizer", "reference", "communication", "fixed")
        return float(sum(getattr(self, name) for name in names))

    @property
    def passing(self) -> float:
        """The most that comes and goes: in a backward pass, in the update, or in sampling."""
        passes = self.activations + max(self.working, self.loss)
        return max(passes, self.cache, self.update)

    @property
    def slack(self) -> float:
        return SLACK * self.passing

    @property
    def total(self) -> float:
        """The peak."""
        return self.held + self.passing + self.slack

    def parts(self) -> dict[str, float]:
        """Bytes by name; the peak is `total`, not their sum."""
        return asdict(self) | {"slack": self.slack}

    def peak_parts(self) -> dict[str, float]:
        """The parts that make up the peak: their sum is `total`."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        passing = {name: values.pop(name) for name in ("activations", "working", "loss", "cache", "update")}
        moments = {
            "backward pass": ("activations", "working" if self.working >= self.loss else "loss"),
            "sampling": ("cache",),
            "update": ("update",),
        }
        peak = max(moments.values(), key=lambda names: sum(passing[name] for name in names))
        return values | {name: passing[name] for name in peak} | {"slack": self.slack}


def training_memory(
    architecture: Architecture, parallel: ParallelConfig, work: Workload, states: Sequence[StateBytes] = ()
) -> Memory:
    """The memory of the pipeline stage that needs the most.

    Args:
        states: of each stage, if they are known already.
    """
    known = states or states_of(architecture, parallel, work)
    found = (
        stage_memory(architecture, parallel, work, stage, state=state) for stage, state in enumerate(known)
    )
    return max(found, key=lambda each: each.total)


def states_of(architecture: Architecture, parallel: ParallelConfig, work: Workload) -> tuple[StateBytes, ...]:
    """Weights, gradients and optimizer state of each pipeline stage, on the rank whose optimizer owns the most."""
    stages = range(parallel.pipeline_model_parallel_size)
    return tuple(_state(architecture, parallel, work, stage) for stage in stages)


def stage_memory(
    architecture: Architecture,
    parallel: ParallelConfig,
    work: Workload,
    stage: int,
    *,
    state: StateBytes | None = None,
) -> Memory:
    """The memory of a rank of one pipeline stage, the one whose optimizer owns the most.

    Args:
        state: its weights, gradients and optimizer state, if they are known already.
    """
    state = state or _state(architecture, parallel, work, stage)
    weights = float(state.weights)
    if work.fp8:
        # Transformer Engine keeps an FP8 copy of each linear layer's weights, and its transpose, for a step's
        # micro-batches (TransformerEngine 2.x, module/base.py: get_weight_workspace).
        weights += 2 * linear_weights(architecture, parallel, stage)
    return Memory(
        weights=weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        reference=state.parameters * work.element if work.reference else 0.0,
        activations=held_activations(architecture, parallel, work, stage),
        working=working_bytes(architecture, parallel, work, stage),
        loss=loss_bytes(architecture, parallel, work, stage),
        cache=cache_bytes(architecture, parallel, work, stage),
        update=state.update,
        communication=COMMUNICATOR * communicators(parallel),
    )


def linear_weights(architecture: Architecture, parallel: ParallelConfig, stage: int) -> int:
    """Numbers in the weights of a rank's linear layers inside of layers, which FP8 applies to."""
    names = {"linear_proj", "linear_qkv", "linear_fc1", "linear_fc2", "in_proj", "out_proj"}
    chunks = stage_parameters(architecture, parallel, stage)
    return sum(each.size for chunk in chunks for each in chunk if each.name in names)


def communicators(parallel: ParallelConfig) -> int:
    """How many groups of several ranks a rank communicates in: tensor, context, data, both of these, and pipeline."""
    p = parallel
    sizes = (
        p.tensor_model_parallel_size,
        p.context_parallel_size,
        p.data_parallel_size,
        p.pipeline_model_parallel_size,
    )
    return sum(size > 1 for size in sizes) + (p.context_parallel_size > 1 and p.data_parallel_size > 1)


def _state(architecture: Architecture, parallel: ParallelConfig, work: Workload, stage: int) -> StateBytes:
    return state_bytes(
        architecture,
        parallel,
        stage,
        precision=work.kept,
        trainable=work.trainable,
        overlap=work.overlap,
        bucket=work.bucket,
    )
