"""Patches that let Megatron-Core 0.16.1 run without CUDA.

Each patch names the upstream lines that need it. On a machine with CUDA `install` does nothing.

A  `torch.cuda.current_device` returns the CPU device: Megatron passes it as `device=` wherever it allocates
   (rotary_pos_embedding.py:162, tensor_parallel/layers.py:552, param_and_grad_buffer.py:800, ...).
B  `torch.cuda.synchronize` does nothing (p2p_communication.py:398, async_utils.py:212, fully_parallel.py:272).
C  the model-parallel random states are CPU generator states (tensor_parallel/random.py:235, 447 and every `fork`).
D  `cuda_requests_on_cpu()`: a context in which `device="cuda"`, `.cuda()`, `pin_memory=True` and `.type()` mean the CPU
   (schedules.py:596, clip_grads.py:103, optimizer.py:481, distrib_optimizer.py:361, transformer/utils.py:35, ...).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_prism.platform.hardware import has_gpu

_CPU = torch.device("cpu")
_CUDA_TYPE_NAMES = {
    f"torch.{kind}Tensor": f"torch.cuda.{kind}Tensor" for kind in ("Float", "Half", "BFloat16", "Int", "Long")
}
_installed = False


class CudaLiteralsOnCpu(TorchFunctionMode):
    """Seam D: executes Megatron's hard-coded CUDA requests on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs:
            device = kwargs.get("device")
            if device is not None and (
                device.type == "cuda" if isinstance(device, torch.device) else str(device).startswith("cuda")
            ):
                kwargs = {**kwargs, "device": _CPU}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            name = func(args[0])
            return _CUDA_TYPE_NAMES.get(name, name)
        return func(*args, **(kwargs or {}))


def cuda_requests_on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Seam D as a context for building models and optimizers, schedules, steps and checkpoints."""
    return contextlib.nullcontext() if has_gpu() else CudaLiteralsOnCpu()


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """A context in which Megatron builds models without memory, on the meta device, even where it asks for CUDA."""
    meta, before = torch.device("meta"), torch.cuda.current_device
    torch.cuda.current_device = lambda: meta  # type: ignore[assignment, return-value]
    try:
        with meta:
            yield
    finally:
        torch.cuda.current_device = before


def install() -> None:
    """Install seams A, B and C once; does nothing on a machine with CUDA."""
    global _installed
    if _installed or has_gpu():
        return
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda device=None: None
    _install_random_states()
    _installed = True


def _install_random_states() -> None:
    from megatron.core.tensor_parallel import random as upstream

    class CpuRNGStatesTracker(upstream.CudaRNGStatesTracker):
        """Named random states kept as CPU generator states."""

        def add(self, name: str, seed: int) -> None:
            self._is_initialized = True
            if seed in self.seeds_ or name in self.states_:
                raise ValueError(f"random state '{name}' or seed {seed} exists already")
            self.seeds_.add(seed)
            self.states_[name] = torch.Generator().manual_seed(seed).get_state()

        @contextlib.contextmanager
        def fork(self, name: str = upstream._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    def get_state(device: Any = None, clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, device: Any = None, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    upstream._get_cuda_rng_state = get_state
    upstream._set_cuda_rng_state = set_state
    upstream.CudaRNGStatesTracker = CpuRNGStatesTracker
