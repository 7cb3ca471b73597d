"""A tensor that says it is on a GPU. Its numbers are on the CPU; PyTorch takes it for one of another device.

A `DeviceTensor` is a wrapper subclass: autograd, views, in-place operations and custom autograd functions are torch's
own, and each operation reaches `run`, which computes it with the CPU tensors inside. `run` refuses what a CUDA kernel
refuses: a tensor that was left on the CPU next to one on the device.

For PyTorch's C++ code the tensor is on the device type `lazy`, which nothing else in this process uses. Its gradients
are computed on the calling thread (CUDA's would need a CUDA build of torch), and tensors that C++ itself allocates
"like" another one, such as missing gradients, become DeviceTensors, too. Python sees `cuda:N`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

NATIVE = torch.device("lazy", 0)
CPU = torch.device("cpu")

# Operators that move data between devices, or that CUDA's kernels accept with tensors on the CPU: indices may be there.
ACROSS = {
    torch.ops.aten.copy_.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten._index_put_impl_.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten.index_put.default,
    torch.ops.aten._foreach_copy_.default,
}


class ImitatedDevice:
    """The one device of this process: its index, its random numbers, and how much memory its tensors took."""

    def __init__(self) -> None:
        self.index = 0
        self.generator = torch.Generator()
        # One thread at a time may exchange the CPU's random state for the device's.
        self.lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.index)

    def check(self, asked: torch.device) -> None:
        """Raise unless `asked` is this process's device; a tensor on another rank's GPU is nearly always a mistake."""
        if asked.index is not None and asked != NATIVE and asked.index != self.index:
            raise RuntimeError(
                f"imitated GPU: this process computes on {self.device}, but asked for a tensor on {asked}"
            )

    @contextlib.contextmanager
    def random(self) -> Iterator[None]:
        """Within the block, the CPU's operators draw the device's random numbers."""
        with self.lock:
            outer = torch.get_rng_state()
            torch.set_rng_state(self.generator.get_state())
            try:
                yield
            finally:
                self.generator.set_state(torch.get_rng_state())
                torch.set_rng_state(outer)


DEVICE = ImitatedDevice()


class DeviceTensor(torch.Tensor):
    """A tensor on the imitated GPU; `inside` is the CPU tensor with its numbers, sizes and strides."""

    inside: torch.Tensor

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inside.shape,
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=NATIVE,
        )
        made.inside = inside
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    device = property(lambda self: DEVICE.device)
    is_cuda = property(lambda self: True)

    def get_device(self) -> int:
        return DEVICE.index

    def type(self, dtype: Any = None, non_blocking: bool = False) -> Any:
        if dtype is None:
            return self.inside.type().replace("torch.", "torch.cuda.")
        return self.to(dtype)

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                "host memory first."
            )
        return self.detach().cpu().numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.inside.tolist()

    def data_ptr(self) -> int:
        return self.inside.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inside.untyped_storage()

    def record_stream(self, stream: object) -> None:
        pass

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.inside!r} on {self.device}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved like a CPU tensor, so that it loads with `weights_only`; it comes back on the CPU (`map_location`)."""
        return self.inside.detach().requires_grad_(self.requires_grad).__reduce_ex__(protocol)


def is_imitated(device: Any) -> bool:
    """Whether a device, as a caller names it, is the imitated one."""
    if device is None or isinstance(device, int):
        return False
    return torch.device(device).type in ("cuda", "lazy")


@cache
def _random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def _pointwise(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operator of torch on the CPU tensors inside; its results are on the device.

    Raises:
        RuntimeError: if a tensor on the CPU, or another rank's device, meets the device.
    """
    if func.namespace == "c10d":
        from gpu_imitation.process_group import collective

        return collective(func, args, kwargs)
    owners: dict[int, torch.Tensor] = {}
    strangers: list[torch.Tensor] = []

    def unwrap(value: Any) -> Any:
        if isinstance(value, DeviceTensor):
            owners[id(value.inside)] = value
            return value.inside
        if isinstance(value, torch.Tensor):
            strangers.append(value)
        elif isinstance(value, list | tuple):
            return type(value)([unwrap(item) for item in value])
        return value

    plain = [unwrap(value) for value in args]
    named = {name: unwrap(value) for name, value in kwargs.items()}
    wanted = named.get("device")
    on_device = bool(owners)
    if wanted is not None:
        on_device = is_imitated(wanted)
        if on_device:
            DEVICE.check(torch.device(wanted))
            named["device"] = CPU
    if named.get("pin_memory"):
        named["pin_memory"] = False
    if owners and strangers:
        _check(func, strangers)
    if named.get("generator") is not None and named["generator"] is not DEVICE.generator:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    with DEVICE.random() if on_device and _random(func) else contextlib.nullcontext():
        named.pop("generator", None)
        result = func(*plain, **named)
    return _wrapped(result, owners, on_device, func is torch.ops.aten.copy_.default and args[0])


def _wrapped(result: Any, owners: dict[int, torch.Tensor], on_device: bool, target: Any) -> Any:
    if target is not False:
        return target

    def wrap(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            owner = owners.get(id(value))
            if owner is not None:
                if owner.shape != value.shape or owner.stride() != value.stride():
                    set_data(owner, DeviceTensor(value))
                return owner
            return DeviceTensor(value) if on_device else value
        if isinstance(value, list | tuple):
            return type(value)([wrap(item) for item in value])
        return value

    return wrap(result)


def _check(func: Any, strangers: list[torch.Tensor]) -> None:
    if func in ACROSS:
        return
    for tensor in strangers:
        # CUDA's element-wise kernels take a tensor without dimensions from the CPU, as a number.
        if tensor.dim() == 0 and tensor.device == CPU and _pointwise(func):
            continue
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{DEVICE.device} and {tensor.device}! (when computing {func})"
        )


_set_data: Callable[[torch.Tensor, torch.Tensor], None] = torch._C.TensorBase.data.__set__


def set_data(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """`tensor.data = value`, also where the value is on another device: the object, its class and attributes remain."""
    if isinstance(tensor, DeviceTensor) and isinstance(value, DeviceTensor):
        _set_data(tensor, value)
        tensor.inside = value.inside
    elif isinstance(tensor, DeviceTensor) or isinstance(value, DeviceTensor):
        attributes = {
            name: entry for name, entry in vars(tensor).items() if name not in ("inside", "_is_param")
        }
        parameter, requires_grad = isinstance(tensor, torch.nn.Parameter), tensor.requires_grad
        other = value.detach()
        if parameter:
            other = torch.nn.Parameter(other, requires_grad)
        else:
            other.requires_grad_(requires_grad)
        torch.utils.swap_tensors(tensor, other)
        vars(tensor).update(attributes)
    else:
        _set_data(tensor, value)
