"""Settings of CUDA and NCCL that must be in the environment before a process uses its GPU."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from megatron_prism.errors import ParallelError

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
# The first compute capability (Blackwell) that orders kernels without this setting.
ORDERS_KERNELS = 10
# When a collective times out, each rank writes which collectives it has joined; `torchfrtrace` names the rank that is
# missing. https://docs.pytorch.org/tutorials/unstable/flight_recorder_tutorial.html
FLIGHT_RECORDER = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
    "TORCH_FR_BUFFER_SIZE": "2000",
}


def prepare_environment(model_parallel: bool) -> None:
    """Set what the user has not set; before the first use of the GPU in this process.

    Args:
        model_parallel: whether tensor or context parallelism is used. Megatron then relies on the order in which it
            launches communication and computation, which GPUs before Blackwell keep only with one connection.
    """
    for name, value in FLIGHT_RECORDER.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault(
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(Path(tempfile.gettempdir()) / "nccl_trace_rank_")
    )
    if model_parallel:
        os.environ.setdefault(CONNECTIONS, "1")


def check_connections(model_parallel: bool, capability: tuple[int, int]) -> None:
    """Refuse a value of CUDA_DEVICE_MAX_CONNECTIONS with which communication would not overlap.

    Args:
        capability: the GPU's compute capability.

    Raises:
        ParallelError: naming the remedy.
    """
    value = os.environ.get(CONNECTIONS, "")
    if model_parallel and value != "1" and capability[0] < ORDERS_KERNELS:
        raise ParallelError(
            f"{CONNECTIONS}={value}: tensor and context parallelism need 1 on this GPU (compute capability "
            f"{capability[0]}.{capability[1]}); unset it"
        )
