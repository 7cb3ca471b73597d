"""The exact bytes of a rank's weights, gradients and optimizer state."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.models.architecture import Architecture
from megatron_prism.planning.ddp_buffers import chunk_buffers
from megatron_prism.planning.parameters import stage_parameters
from megatron_prism.platform.process_groups import ParallelConfig


@dataclass(frozen=True)
class StatePrecision:
    """Bytes of a number of each kind; the defaults are bf16 weights with fp32 gradients, main weights and moments.

    Attributes:
        weight: of the model's weights.
        gradient: of the buffer in which gradients are summed.
        main: of the optimizer's copy of the weights; 0 where the weights themselves are fp32.
        moments: of Adam's two moments together.
        aware: Transformer Engine's precision-aware Adam, which reads gradients as they are.
        offloaded: share of the optimizer's state that is on the CPU.
    """

    weight: int = 2
    gradient: int = 4
    main: int = 4
    moments: int = 8
    aware: bool = False
    offloaded: float = 0.0

    @classmethod
    def of(cls, dtype: str, grad_reduce_in_fp32: bool = True) -> StatePrecision:
        """Of `dtype` 'bf16' or 'fp32'."""
        if dtype == "fp32":
            return cls(weight=4, gradient=4, main=0)
        return cls(gradient=4 if grad_reduce_in_fp32 else 2)


@dataclass(frozen=True)
class StateBytes:
    """Bytes on one rank.

    Attributes:
        weights: of the model's parameters; those that are trained lie in DDP's padded buffer.
        gradients: of the gradient buffers.
        optimizer: moments and main weights, on the GPU. Adam's step counts are left out: 4 bytes a parameter tensor.
        update: what the update makes besides: fp32 copies of gradients that are not fp32.
        parameters, trained: numbers on this rank, without padding.
    """

    weights: int
    gradients: int
    optimizer: float
    update: int
    parameters: int
    trained: int


def state_bytes(
    architecture: Architecture,
    parallel: ParallelConfig,
    stage: int,
    *,
    precision: StatePrecision | None = None,
    trainable: str = "all",
    overlap: bool = True,
    bucket: int | None = None,
    data_rank: int | None = None,
) -> StateBytes:
    """The bytes of a rank of a pipeline stage.

    Args:
        overlap, bucket: see `ddp_buffers.chunk_buffers`.
        data_rank: rank among the data- and context-parallel ranks; None: the one that owns the most.
    """
    kept = precision or StatePrecision()
    chunks = stage_parameters(architecture, parallel, stage, trainable)
    buffers = chunk_buffers(chunks, parallel, stage, overlap=overlap, chosen_bucket=bucket)
    every = [each for chunk in chunks for each in chunk]
    count = sum(each.size for each in every)
    trained = sum(each.size for each in every if each.trained)
    length = sum(buffer.length for buffer in buffers)
    ranks = parallel.data_parallel_size * parallel.context_parallel_size
    if not parallel.use_distributed_optimizer:
        owned, stored = trained, count
    else:
        stored = count - trained + length
        if data_rank is None:
            owned = max(sum(buffer.shard(rank, ranks) for buffer in buffers) for rank in range(ranks))
        else:
            owned = sum(buffer.shard(data_rank, ranks) for buffer in buffers)
    copies = 0 if kept.gradient == 4 or kept.aware else 4 * owned
    return StateBytes(
        weights=stored * kept.weight,
        gradients=length * kept.gradient,
        optimizer=owned * (kept.main + kept.moments) * (1 - kept.offloaded),
        update=copies,
        parameters=count,
        trained=trained,
    )
