"""Stand-ins for the functions of `torch.cuda`, and for those of torch that take `device="cuda"`.

Streams and events exist as objects without effect: everything on the imitated device has happened when a call returns.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from gpu_imitation.device_tensor import DEVICE, NATIVE, DeviceTensor, is_imitated, set_data
from gpu_imitation.process_group import as_imitated

NAME = "Imitation of an NVIDIA H100 80GB HBM3"
MEMORY = 80 * 2**30
# The imitation does not count memory; a constant keeps ratios finite.
USED = 2**20
Patch = tuple[Any, str, Any]


class Stream:
    """A stream without effect."""

    device_type, stream_id, cuda_stream = 1, 0, 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = DEVICE.device

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        event = event or Event()
        event.record(self)
        return event


class Event:
    """An event that has always happened; it keeps the time at which it was recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.recorded = time.perf_counter()

    def record(self, stream: object = None) -> None:
        self.recorded = time.perf_counter()

    def wait(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.recorded - self.recorded)


class Generators:
    """`torch.cuda.default_generators`: the one of this device, by index or device."""

    def __getitem__(self, which: Any) -> torch.Generator:
        return DEVICE.generator

    def __len__(self) -> int:
        return 1


class DeviceContext(contextlib.nullcontext[None]):
    """`torch.cuda.device(...)`: a process of the imitation has one device."""


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _set_device(device: Any) -> None:
    DEVICE.index = device if isinstance(device, int) else torch.device(device).index or 0


def _get_rng_state(device: Any = "cuda") -> torch.Tensor:
    return DEVICE.generator.get_state()


def _set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
    DEVICE.generator.set_state(new_state)


def _manual_seed(seed: int) -> None:
    DEVICE.generator.manual_seed(seed)


def _memory_stats(*args: Any, **kwargs: Any) -> dict[str, int]:
    kinds = ("allocated_bytes", "reserved_bytes", "active_bytes", "inactive_split_bytes", "allocation")
    values = {
        f"{kind}.all.{value}": USED for kind in kinds for value in ("current", "peak", "allocated", "freed")
    }
    return values | {"num_alloc_retries": 0, "num_ooms": 0}


def _functions() -> dict[str, Any]:
    """The functions of `torch.cuda` by name."""
    amounts = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    ignored = ("synchronize", "empty_cache", "reset_peak_memory_stats", "ipc_collect", "_lazy_init", "init")
    properties = SimpleNamespace(
        name=NAME, total_memory=MEMORY, major=9, minor=0, multi_processor_count=132, L2_cache_size=50 * 2**20
    )
    return {
        **dict.fromkeys((*ignored, "set_stream"), _nothing),
        **dict.fromkeys(amounts, lambda *a, **k: USED),
        "memory_stats": _memory_stats,
        "mem_get_info": lambda device=None: (MEMORY - USED, MEMORY),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *a, **k: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 8,
        # Upstream hands it on as `device=`; an int would mean torch's own accelerator, of which there is none.
        "current_device": lambda: DEVICE.device,
        "set_device": _set_device,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
        "get_rng_state": _get_rng_state,
        "set_rng_state": _set_rng_state,
        "get_rng_state_all": lambda: [_get_rng_state()],
        "set_rng_state_all": lambda states: _set_rng_state(states[0]),
        "manual_seed": _manual_seed,
        "manual_seed_all": _manual_seed,
        "seed": lambda: DEVICE.generator.seed(),
        "initial_seed": lambda: DEVICE.generator.initial_seed(),
        "default_generators": Generators(),
        "Stream": Stream,
        "Event": Event,
        "device": DeviceContext,
        "stream": contextlib.nullcontext,
        "current_stream": Stream,
        "default_stream": Stream,
    }


def _placed(value: Any) -> Any:
    """A device as torch's C++ code must get it."""
    if isinstance(value, torch.device | str) and is_imitated(value):
        DEVICE.check(torch.device(value))
        return NATIVE
    return value


def _moving(original: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.to`, which CPU-only torch would refuse for `cuda`."""

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.device | str):
            args = (_placed(args[0]), *args[1:])
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _placed(kwargs["device"])}
        return original(self, *args, **kwargs)

    return to


def _numbers(data: Any) -> Any:
    """A nested list with the numbers of its device tensors, which torch's C++ code would read one by one."""
    if isinstance(data, list | tuple):
        return type(data)(
            item.tolist() if isinstance(item, DeviceTensor) else _numbers(item) for item in data
        )
    return data


def _copying(original: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.tensor` and `torch.as_tensor`, which CPU-only torch would refuse for `cuda`."""

    def tensor(data: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _placed(kwargs["device"])}
        return original(_numbers(data), *args, **kwargs)

    return tensor


def _unpinned(original: Callable[..., Any]) -> Callable[..., Any]:
    """A factory whose `pin_memory=True` needs a CUDA build of torch."""

    def factory(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        return original(*args, **kwargs)

    return factory


def _compatible(original: Callable[..., bool]) -> Callable[..., bool]:
    # The names are torch's: dynamo compares the signatures.
    def compatible(input: torch.Tensor, from_: torch.Tensor) -> bool:
        return isinstance(input, DeviceTensor) or isinstance(from_, DeviceTensor) or original(input, from_)

    return compatible


def _groups(original: Callable[..., Any]) -> Callable[..., Any]:
    """`init_process_group` and `new_group`, with this imitation where they ask for NCCL."""

    def create(*args: Any, **kwargs: Any) -> Any:
        args = tuple(as_imitated(value) if isinstance(value, str) else value for value in args)
        if "backend" in kwargs:
            kwargs = {**kwargs, "backend": as_imitated(kwargs["backend"])}
        kwargs.pop("device_id", None)
        return original(*args, **kwargs)

    return create


def _barrier(original: Callable[..., Any]) -> Callable[..., Any]:
    """NCCL's barrier is a collective on its device; the general one would ask this group for the CPU."""

    def barrier(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:
        if torch.device("cpu") in (group or dist.group.WORLD)._device_types:
            return original(group, async_op)
        return dist.all_reduce(torch.zeros(1, device=NATIVE), group=group, async_op=async_op)

    return barrier


def _cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return self.to(NATIVE)


def _data(original: Any) -> property:
    return property(original.__get__, set_data)


def patches() -> Iterator[Patch]:
    """Every (owner, name, stand-in)."""
    for name, function in _functions().items():
        yield torch.cuda, name, function
        for module in (torch.cuda.random, torch.cuda.memory):
            if hasattr(module, name) and name != "device":
                yield module, name, function
    for name in ("range_push", "range_pop", "mark"):
        yield torch.cuda.nvtx, name, _nothing
    yield torch.version, "cuda", "12.8"
    yield torch.Tensor, "to", _moving(torch.Tensor.to)
    yield torch.Tensor, "cuda", _cuda
    yield torch.Tensor, "pin_memory", lambda self, device=None: self
    yield torch.Tensor, "data", _data(torch._C.TensorBase.data)
    yield torch, "_has_compatible_shallow_copy_type", _compatible(torch._has_compatible_shallow_copy_type)
    for name in ("tensor", "as_tensor"):
        yield torch, name, _copying(getattr(torch, name))
    for name in ("empty", "empty_like", "zeros", "zeros_like", "ones", "ones_like", "full", "empty_strided"):
        yield torch, name, _unpinned(getattr(torch, name))
    for module in (dist, dist.distributed_c10d):
        for name in ("init_process_group", "new_group"):
            yield module, name, _groups(getattr(dist, name))
        yield module, "barrier", _barrier(dist.barrier)
        yield module, "is_nccl_available", lambda: True
