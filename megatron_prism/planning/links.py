"""How long collectives take: bytes over the bandwidth of the links, less for small payloads.

Measured curves of all-reduce on eight H200 and on four nodes of eight B200 (stas00/ml-engineering, network/README.md,
commit 744d01e) follow payload / (payload + half) within a few percent: half of the bandwidth is reached at
`HALF_NVLINK` inside a node and at `HALF_NETWORK` between nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.planning.gpu_profile import GpuProfile
from megatron_prism.platform.process_groups import ParallelConfig

HALF_NVLINK, HALF_NETWORK = 25 * 2**20, 110 * 2**20
# Share of all network cards of a node that rings over several nodes reach: 382 of 400 GB/s (the same measurement).
NETWORK = 0.95
# Share of a link that one send between two GPUs reaches (assumption: as in a ring).
SEND = 0.80
LATENCY = 10e-6


@dataclass(frozen=True)
class Group:
    """Ranks that communicate.

    Attributes:
        size: how many.
        inside: how many of them are in one NVLink domain.
    """

    size: int
    inside: int

    @property
    def spans_nodes(self) -> bool:
        return self.inside < self.size


def group(gpu: GpuProfile, size: int, stride: int) -> Group:
    """A group of every `stride`-th rank; Megatron numbers tensor, then context, data and pipeline ranks."""
    return Group(size, max(1, min(size, gpu.gpus_per_nvlink_domain // stride)))


def groups(gpu: GpuProfile, parallel: ParallelConfig) -> dict[str, Group]:
    """The groups of a layout by name: tensor, context, replicas (data and context together), pipeline."""
    tp, cp, dp = (
        parallel.tensor_model_parallel_size,
        parallel.context_parallel_size,
        parallel.data_parallel_size,
    )
    return {
        "tensor": group(gpu, tp, 1),
        "context": group(gpu, cp, tp),
        "replicas": group(gpu, cp * dp, tp),
        "pipeline": group(gpu, parallel.pipeline_model_parallel_size, tp * cp * dp),
    }


def gather_seconds(gpu: GpuProfile, ranks: Group, payload: float, messages: float = 1) -> float:
    """An all-gather, a reduce-scatter, or half an all-reduce, of `payload` bytes on all ranks together, in messages."""
    if ranks.size == 1 or payload == 0:
        return 0.0
    share = (ranks.size - 1) / ranks.size
    return share * payload / bandwidth(gpu, ranks, payload / messages) + LATENCY * messages


def bandwidth(gpu: GpuProfile, ranks: Group, payload: float) -> float:
    """Bytes per second that pass a rank in a collective of this payload."""
    inside = gpu.nvlink * gpu.collectives
    if not ranks.spans_nodes:
        return inside * payload / (payload + HALF_NVLINK)
    # NCCL makes as many rings as there are network cards, each with a part of the data.
    between = min(inside, gpu.network * NETWORK * ranks.inside)
    return between * payload / (payload + HALF_NETWORK)


def send_seconds(gpu: GpuProfile, ranks: Group, payload: float) -> float:
    """A send to the next rank of the group."""
    if ranks.size == 1:
        return 0.0
    link = gpu.network if ranks.spans_nodes else gpu.nvlink
    return payload / (link * SEND) + LATENCY
