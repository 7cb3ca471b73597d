"""Which hardware, packages, programs, folders and services this machine has, and what each is needed for.

Packages are looked up in the installed metadata and not imported: `import transformer_engine` raises when only its
empty meta package is installed, and importing vLLM is slow.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from megatron_prism.platform import hardware
from megatron_prism.platform.check import Check
from megatron_prism.platform.cluster_checks import cluster_checks
from megatron_prism.platform.folder_checks import folder_checks

VITAL = ("torch", "megatron-core", "transformers", "nemo-run")
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


def diagnose(run_dir: Path) -> list[Check]:
    """Every check, in the order of the table. It takes seconds, because torch looks for a GPU."""
    return [*_machine(), _nccl(), *_packages(), *_programs(), *folder_checks(run_dir), *cluster_checks()]


def vital_problems(run_dir: Path) -> list[Check]:
    """What this machine needs for any run and does not have: packages, a torch that computes, folders to write."""
    checks = [*_packages(), _temporary_folder(), *folder_checks(run_dir)]
    if not (problems := [check for check in checks if check.vital and not check.found]):
        problems = [check for check in (_torch_computes(), _gpus_work()) if not check.found]
    return problems


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
        extra = unlocks.partition("(extra: ")[2].rstrip(")")
        remedy = f"pip install 'megatron-prism[{extra}]'" if extra else f"pip install {distribution}"
        detail = (
            version if version and found else f"{version}, without its module" if version else "not installed"
        )
        checks.append(Check(name, found, detail, unlocks, remedy + ".", vital=name in VITAL))
    return checks


def _programs() -> list[Check]:
    path = shutil.which("cc")
    unlocks = "building extensions and Triton kernels"
    return [
        Check("C compiler", path is not None, path or "no cc on PATH", unlocks, "apt-get install gcc g++.")
    ]


def _nccl() -> Check:
    found = ""
    if _has_torch():
        import torch

        if torch.distributed.is_nccl_available():
            found = ".".join(map(str, torch.cuda.nccl.version()))
    remedy = "Install a torch that was built for CUDA; without a GPU it is not needed."
    return Check("NCCL", bool(found), found or "none in this torch", "collectives between GPUs", remedy)


def _temporary_folder() -> Check:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"prism doctor")
        problem = ""
    except OSError as error:
        problem = str(error.strerror)
    remedy = "Set TMPDIR to a folder that can be written."
    return Check("temporary folder", not problem, problem, "every run", remedy, vital=True)


def _torch_computes() -> Check:
    """Whether this process can import torch and multiply; a broken installation shows itself only here."""
    try:
        import torch

        right = float((torch.full((8, 8), 2.0) @ torch.ones(8, 8)).sum()) == 1024.0
        problem = "" if right else "a product of matrices is wrong"
    except Exception as error:  # A broken library raises almost anything.
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return Check("torch computes", not problem, problem, "every run", "Install torch again.", vital=True)


def _gpus_work() -> Check:
    """Whether torch reaches a GPU where the kernel has its driver; a container may have lost it."""
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    works = not devices or hardware.has_gpu()
    detail = f"{len(devices)} devices in /dev, and torch reaches none"
    return Check("GPUs", works, detail, "training", "Run nvidia-smi; restart the container.", vital=True)


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
