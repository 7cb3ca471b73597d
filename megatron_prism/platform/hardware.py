"""Facts about the machine: the device to compute on, its peak speed, its memory, and installed versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_prism.errors import ParallelError
from megatron_prism.platform.lean_imports import may_have_gpu
from megatron_prism.platform.source_tree import ROOT

# Dense bf16 peaks in FLOP/s (without sparsity) from the vendor's data sheets, by a part of the device name.
GPU_PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}

PACKAGES = (
    "megatron-prism",
    "torch",
    "megatron-core",
    "transformers",
    "tokenizers",
    "math-verify",
    "nemo-run",
)


@dataclass(frozen=True)
class Peak:
    """A peak speed and its source, which a reader needs to judge an MFU."""

    flops_per_second: float
    name: str


# What a dry run computes on in shapes (fake_device.py), and whether it stands for a GPU; None: this machine's device.
imitated: tuple[Any, bool] | None = None


def has_gpu() -> bool:
    """Whether this process can compute on a CUDA device; torch is imported only if a driver is loaded."""
    if imitated is not None:
        return imitated[1]
    if "torch" not in sys.modules and not may_have_gpu():
        return False
    import torch

    return torch.cuda.is_available()


def device() -> Any:
    """The torch device of this process: its CUDA device by LOCAL_RANK, or the CPU."""
    import torch

    if imitated is not None:
        return imitated[0]
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu() else torch.device("cpu")


def check_devices(processes: int) -> None:
    """Raise a ParallelError if this machine has GPUs, but fewer than the processes that a stage starts on it."""
    if processes < 2 or not has_gpu():
        return
    import torch

    count = torch.cuda.device_count()
    if processes > count:
        raise ParallelError(
            f"the layout needs {processes} processes on this machine, which has {count} GPUs; choose smaller sizes in "
            "`parallel`"
        )


def device_name() -> str:
    """'NVIDIA H200' or the CPU's model name."""
    if has_gpu():
        import torch

        return str(torch.cuda.get_device_name(device()))
    return cpu_name()


def cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """The instruction sets that matter for speed, among those the kernel lists."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("flags"):
            return set(line.split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}
    return set()


@lru_cache(maxsize=2)
def peak(dtype: str = "bf16") -> Peak:
    """Peak speed of one device: the data sheet's bf16 value for a known GPU, otherwise that of a measured matmul.

    Args:
        dtype: 'bf16' or 'fp32'; it changes only a measured peak.
    """
    name = device_name()
    if has_gpu():
        for piece, flops in GPU_PEAK_BF16.items():
            if piece in name:
                return Peak(flops, f"{piece} bf16 dense data sheet")
    return Peak(_measured_matmul(dtype), f"measured {dtype} matmul, {_threads()} threads")


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _measured_matmul(dtype: str, size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of the fastest of a few `size`^3 matmuls."""
    import time

    import torch

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    a = torch.ones(size, size, dtype=kind, device=device())
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far (device memory on a GPU)."""
    if has_gpu():
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_gib() -> dict[str, float]:
    """Memory of this process in GiB: on a GPU allocated, reserved and their peaks; else the largest resident size."""
    found = {"peak": peak_memory_bytes()}
    if has_gpu():
        import torch

        found |= {
            "allocated": torch.cuda.memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
            "reserved_peak": torch.cuda.max_memory_reserved(),
        }
    return {name: round(size / 2**30, 3) for name, size in found.items()}


def memory_total_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_facts() -> dict[str, Any]:
    """Facts about the machine for a receipt."""
    return {
        "device": device_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_total_bytes() / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.system(),
    }


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Package versions for a receipt, with the commit if this is a git checkout."""
    found = {name: version for name in PACKAGES if (version := package_version(name))}
    commit = _source_commit()
    if commit:
        found["commit"] = commit
    return found


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _source_commit() -> str | None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return done.stdout.strip() or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def cuda_version() -> tuple[int, int]:
    """(major, minor) of the CUDA that torch was built with; (0, 0) for a build without it."""
    import torch

    major, minor = (torch.version.cuda or "0.0").split(".")[:2]
    return int(major), int(minor)


def compute_capability() -> tuple[int, int]:
    """The compute capability of this process's GPU; only where there is one."""
    import torch

    return torch.cuda.get_device_capability()
