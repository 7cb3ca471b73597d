"""A device without memory: the real training code runs on torch's `meta` tensors, which have shapes and no numbers.

Meta tensors, and not torch's FakeTensorMode: an operation takes a tenth of the time (docs/dry-run.md), and a rank of a
128k step has up to two million of them. What meta tensors do not answer by themselves is answered by `ShapesOnly`:

- Which branch a layer takes. `x.is_cuda` (layers/blockwise.py, ssd.py, token_loss.py, ...) is true while a GPU is
  imitated, so the blocks are as large as they are there.
- Which kernel computes attention. Meta tensors would take torch's plain one, with a matrix of all scores.
- `F.rms_norm`, which is one kernel on a GPU that keeps its input and one number per row.
- Numbers that upstream reads from the device: the norm of the gradients (clip_grads.py:133), losses, `isnan`.
- `device="cuda"`, `.cuda()`, `pin_memory` and `.type()`, as in seam D of cpu_seam.py.
- The backward pass, which torch runs outside of every TorchFunctionMode that sees `Tensor.backward` or
  `torch.autograd.grad` (torch/autograd/__init__.py:376, 539).
- torch's fused AdamW, which asks for the name of the device (torch/optim/optimizer.py:191) before it runs.
- `data_ptr()`, which is 0 for every meta tensor (layers/recompute.py compares two of them).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import optimizer as optimizers
from torch.overrides import TorchFunctionMode

from megatron_prism.platform import cpu_seam, hardware

META = torch.device("meta")
_TYPES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
    torch.int32: "torch.cuda.IntTensor",
    torch.int64: "torch.cuda.LongTensor",
}
# The properties that a layer asks for, and whether they mean a GPU.
_IS = {Tensor.is_cuda.__get__: True, Tensor.is_cpu.__get__: False}  # type: ignore[attr-defined]


_POSITION = "is_a_position"
# What `whole_numbers` set.
_whole_number: int | None = None


class NumberNeeded(RuntimeError):
    """The code asks for a number that decides a size, and a dry run has only shapes."""


def _number(tensor: Tensor) -> float | bool:
    """What stands for the number in a tensor: losses, norms and counts of bad numbers are 0, and a test finds none."""
    if tensor.dtype is torch.bool:
        return False
    if tensor.is_floating_point():
        return 0.0
    if hasattr(tensor, _POSITION):
        return 0
    if _whole_number is not None:
        return _whole_number
    raise NumberNeeded(f"a number of {tensor.dtype} is read from the device, and it may decide a size")


def _list(tensor: Tensor) -> Any:
    value: Any = _number(tensor)
    for size in reversed(tensor.shape):
        value = [value] * size
    return value


def _numbers(values: Any) -> Any:
    """A nested list with a number in place of each meta tensor, such as the norms of all tensors (utils.py:1206)."""
    if isinstance(values, list | tuple):
        return [_numbers(each) for each in values]
    return _number(values) if _is_meta(values) else values


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


_READS: dict[Any, Callable[[Tensor], Any]] = {
    Tensor.item: _number,
    Tensor.tolist: _list,
    Tensor.__float__: lambda x: float(_number(x)),
    Tensor.__bool__: lambda x: bool(_number(x)),
    Tensor.__int__: lambda x: int(_number(x)),
    Tensor.type: lambda x: _TYPES.get(x.dtype, f"torch.cuda.{x.dtype}"),
    Tensor.data_ptr: lambda x: x.untyped_storage()._cdata * 2**40 + x.storage_offset() * x.element_size(),
    Tensor.pin_memory: lambda x: x,
    Tensor.cuda: lambda x: x,
}


class ShapesOnly(TorchFunctionMode):
    """Answers for meta tensors what a device with numbers would.

    Args:
        gpu: imitate a GPU; False: this CPU, whose layers take other branches and keep other tensors.
    """

    def __init__(self, gpu: bool) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _IS and args[0].is_meta:
            return self.gpu == _IS[func]
        if func is F.scaled_dot_product_attention and _is_meta(args[0]):
            return _attention(*args, **(kwargs or {}), gpu=self.gpu)
        if func is F.rms_norm and self.gpu and _is_meta(args[0]):
            return _fused_norm(*args, **(kwargs or {}))
        if func is Tensor.argmax and args[0].is_meta:
            # The first number may be the largest as well as any other (rl/gate.py).
            found = func(*args, **(kwargs or {}))
            setattr(found, _POSITION, True)
            return found
        if func is Tensor.cuda:
            return args[0].to(META)
        if func in _READS and len(args) == 1 and args[0].is_meta:
            return _READS[func](args[0])
        if func is torch.tensor and isinstance(args[0], list | tuple):
            args = (_numbers(args[0]), *args[1:])
        if kwargs:
            kwargs = {**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs
            if self._is_here(kwargs.get("device")):
                kwargs = {**kwargs, "device": META}
        if func is Tensor.to and len(args) > 1 and self._is_here(args[1]):
            args = (args[0], META, *args[2:])
        return func(*args, **(kwargs or {}))

    def _is_here(self, device: Any) -> bool:
        if not isinstance(device, str | torch.device):
            return False
        kind = device.type if isinstance(device, torch.device) else device.split(":")[0]
        return kind == "cuda" or (kind == "cpu" and not self.gpu)


class _FusedNorm(torch.autograd.Function):
    """What `_fused_rms_norm` of CUDA makes and keeps; on meta tensors it is a chain of operations that keeps more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        # As the kernel: torch.nn.functional.rms_norm would refuse a weight of another shape.
        if x.shape[-weight.dim() :] != weight.shape:
            raise RuntimeError(
                f"rms_norm of {tuple(x.shape)}: the weight has the shape {tuple(weight.shape)}"
            )
        scale = torch.empty(*x.shape[: -weight.dim()], 1, dtype=torch.float32, device=META)
        ctx.save_for_backward(x, weight, scale)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _fused_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    if weight is None:
        return torch.ops.aten.rms_norm(x, shape, weight, eps)
    output: Tensor = _FusedNorm.apply(x, weight)
    return output


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    gpu: bool,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that torch chooses: on a GPU flash attention without a mask and the memory-efficient one with it."""
    aten = torch.ops.aten
    found: Any
    if not gpu:
        found = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )
    elif attn_mask is None and query.dtype is not torch.float32:
        found = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)
    else:
        if enable_gqa:
            shared = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        bias = None if attn_mask is None else attn_mask.expand(*query.shape[:3], key.shape[2])
        found = aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
        )
    output: Tensor = found[0]
    return output


@contextlib.contextmanager
def whole_numbers(value: int) -> Iterator[None]:
    """Within the block, a whole number that is read from the device is `value`; otherwise reading one is an error.

    The caller knows what the code reads: the largest number of a text, from which the size of a sum follows.
    """
    global _whole_number
    before, _whole_number = _whole_number, value
    try:
        yield
    finally:
        _whole_number = before


@contextlib.contextmanager
def shapes_only(gpu: bool = True) -> Iterator[None]:
    """A context in which this process computes on a device without memory.

    Random states, Megatron's included, are afterwards what they were before.
    """
    from megatron.core.tensor_parallel import random as upstream

    # Megatron's random states are those of the CPU; this must happen before a GPU is imitated.
    cpu_seam.install()
    current, synchronize, before = torch.cuda.current_device, torch.cuda.synchronize, hardware.imitated
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    tracker = upstream._CUDA_RNG_STATE_TRACKER, upstream._CUDA_RNG_STATE_TRACKER_INITIALIZED
    torch.cuda.current_device = lambda: META  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda device=None: None
    hardware.imitated = META, gpu
    mode, run_backward = ShapesOnly(gpu), torch.autograd._engine_run_backward
    fused = optimizers._get_fused_kernels_supported_devices

    def backward(*inputs: Any, **keywords: Any) -> Any:
        with mode:
            return run_backward(*inputs, **keywords)

    torch.autograd._engine_run_backward = backward
    optimizers._get_fused_kernels_supported_devices = lambda: [*fused(), META.type]
    try:
        with mode:
            yield
    finally:
        hardware.imitated = before
        torch.autograd._engine_run_backward = run_backward
        optimizers._get_fused_kernels_supported_devices = fused
        torch.cuda.current_device, torch.cuda.synchronize = current, synchronize
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        upstream._CUDA_RNG_STATE_TRACKER, upstream._CUDA_RNG_STATE_TRACKER_INITIALIZED = tracker
