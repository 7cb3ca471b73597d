"""Patches that let Megatron-Core 0.16.1 run without CUDA.

Each patch names the upstream lines that need it. On a machine with CUDA `install` does nothing.

A  `torch.cuda.current_device` returns the CPU device: Megatron passes it as `device=` wherever it allocates
   (rotary_pos_embedding.py:162, tensor_parallel/layers.py:552, param_and_grad_buffer.py:800, ...).
B  `torch.cuda.synchronize` does nothing (p2p_communication.py:398, async_utils.py:212, fully_parallel.py:272).
C  the model-parallel random states are CPU generator states (tensor_parallel/random.py:235, 447 and every `fork`).
D  `cuda_requests_on_cpu()`: a context in which `device="cuda"`, `.cuda()`, `pin_memory=True` and `.type()` mean the CPU
   (schedules.py:596, clip_grads.py:103, optimizer.py:481, distrib_optimizer.py:361, transformer/utils.py:35, ...).
E  the distributed optimizer loads torch's AdamW state (distrib_optimizer.py:642, 811, 909): torch keeps a `step` per
   parameter that Apex and Transformer Engine do not have. Call `prime_adam_state` before a load and
   `unshare_adam_steps` after it.
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
    """Install seams A, B, C and E once; does nothing on a machine with CUDA."""
    global _installed
    if _installed or has_gpu():
        return
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda device=None: None
    _install_random_states()
    _install_adam_loading()
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


def _install_adam_loading() -> None:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    def set_main_param_and_optimizer_states(self: Any, model_param: Any, tensors: Any) -> None:
        group, order = self.model_param_group_index_map[model_param]
        main = self.optimizer.param_groups[group]["params"][order]
        with torch.no_grad():
            for key, target in {"param": main, **self.optimizer.state[main]}.items():
                if key != "step":
                    target.copy_(tensors[key])

    DistributedOptimizer._set_main_param_and_optimizer_states = set_main_param_and_optimizer_states


def _torch_optimizers(optimizer: Any) -> Iterator[torch.optim.Optimizer]:
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(part, "optimizer", None) is not None:
            yield part.optimizer


def prime_adam_state(optimizer: Any) -> None:
    """Seam E, before a load: create the moments, which torch's AdamW otherwise creates in its first step."""
    for inner in _torch_optimizers(optimizer):
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter]:
                    inner.state[parameter].update(
                        step=torch.tensor(0.0),
                        exp_avg=torch.zeros_like(parameter.data),
                        exp_avg_sq=torch.zeros_like(parameter.data),
                    )


def unshare_adam_steps(optimizer: Any) -> None:
    """Seam E, after a load: give each state its own `step`; upstream shares one, which AdamW would count many times."""
    for inner in _torch_optimizers(optimizer):
        for state in inner.state.values():
            if "step" in state:
                state["step"] = state["step"].clone()


def use_fused_adam(optimizer: Any) -> None:
    """Let torch's AdamW update each parameter with one fused kernel, which exists on the CPU, too."""
    for inner in _torch_optimizers(optimizer):
        if isinstance(inner, torch.optim.AdamW | torch.optim.Adam):
            for group in inner.param_groups:
                group["fused"], group["foreach"] = True, False
