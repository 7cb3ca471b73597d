"""Which hardware, packages and programs this machine has, and what each is needed for.

Packages are looked up in the installed metadata and not imported: `import transformer_engine` raises when only its
empty meta package is installed, and importing vLLM is slow.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass

from megatron_prism.platform import hardware


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it was found, details, and what it is needed for."""

    name: str
    found: bool
    detail: str
    unlocks: str


# Name to show, distribution, module that must exist, too, and what the package is needed for.
PACKAGES = (
    ("torch", "torch", "torch", "everything that touches a model"),
    ("megatron-core", "megatron-core", "megatron.core", "models, parallelism, checkpoints, datasets"),
    ("transformers", "transformers", "transformers", "tokenizers and Hugging Face folders"),
    ("nemo-run", "nemo-run", "nemo_run", "prism run --executor: stages as jobs of a cluster"),
    (
        "transformer_engine",
        "transformer-engine-torch",
        "transformer_engine",
        "fused layers and FP8 (extra: gpu)",
    ),
    ("mamba_ssm", "mamba-ssm", "mamba_ssm", "CUDA kernels for hybrid models (extra: gpu)"),
    ("causal_conv1d", "causal-conv1d", "causal_conv1d", "CUDA convolution for hybrid models (extra: gpu)"),
    ("flash_attn", "flash-attn", "flash_attn", "FlashAttention kernels (extra: gpu)"),
    ("vllm", "vllm", "vllm", "fast sampling of exported models (extra: vllm)"),
    ("modelopt", "nvidia-modelopt", "modelopt", "quantization of exported models (extra: modelopt)"),
)
PROGRAMS = (
    ("Slurm", "sbatch", "jobs on a cluster"),
    ("C compiler", "cc", "building extensions and Triton kernels"),
)


def diagnose() -> list[Check]:
    """Every check, in the order of the table. It takes seconds, because torch looks for a GPU."""
    return [*_machine(), *_packages(), *_programs()]


def _machine() -> list[Check]:
    flags = hardware.cpu_flags()
    amx = sorted(flag for flag in flags if flag.startswith("amx"))
    avx512 = sorted(flag for flag in flags if flag.startswith("avx512"))
    gpu = _has_torch() and hardware.has_gpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        Check(
            "CUDA",
            gpu,
            _cuda_version() if gpu else "none",
            "GPU training; without it everything runs on the CPU",
        ),
        Check("GPU", gpu, hardware.device_name() if gpu else "none", "the peak speed for MFU"),
        Check("CPU", True, f"{hardware.cpu_name()}, {cores} cores usable", "data work and small models"),
        Check("AMX", bool(amx), ", ".join(amx) or "none", "fast bf16 matrix products on the CPU"),
        Check("AVX-512", bool(avx512), ", ".join(avx512) or "none", "fast vector code on the CPU"),
        Check("memory", True, f"{hardware.memory_total_bytes() / 2**30:.1f} GiB", "limits the model size"),
    ]


def _packages() -> list[Check]:
    checks = []
    for name, distribution, module, unlocks in PACKAGES:
        version = hardware.package_version(distribution)
        found = version is not None and _has_module(module)
        checks.append(Check(name, found, version or "not installed", unlocks))
    return checks


def _programs() -> list[Check]:
    return [
        Check(name, (path := shutil.which(program)) is not None, path or f"no {program} on PATH", unlocks)
        for name, program, unlocks in PROGRAMS
    ]


def _has_torch() -> bool:
    return _has_module("torch")


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _cuda_version() -> str:
    import torch

    return str(torch.version.cuda)
