"""Imitates a GPU on a machine without one: the real code runs with `has_gpu()` true, and its numbers are computed.

    with imitate_gpu():
        ...  # torch.cuda.is_available(), device="cuda", .cuda(), init_process_group("nccl"), ...

What fails on a GPU fails here: a tensor left on the CPU that meets one on the device or a collective, a tensor on
another rank's GPU, `.numpy()` of a device tensor, a random generator of the CPU, a random state that is not restored.

What it cannot show: CUDA kernels and their rounding, streams and events (everything is synchronous), memory,
torch.compile, CUDA graphs, and NCCL's own behaviour (hangs, the order of its sums). See README.md.

Enter it once per process and before any model, session or optimizer is made; it replaces functions of torch for the
whole process, so tests use it in a process of their own (`imitated_process`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils._device

from gpu_imitation.cuda_calls import patches
from gpu_imitation.device_tensor import DEVICE, run

# The functions with which torch's C++ code allocates; all other factories call these.
_ALLOCATIONS = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default)
_library: Any = None


def _register() -> None:
    """Answer allocations on `cuda`, and on the device type that C++ sees. There is no way back."""
    global _library
    if _library is not None:
        return
    if torch.version.cuda is not None:
        # A CUDA build on a machine without a GPU: its device guard would ask the driver.
        torch._C._ensureCUDADeviceGuardSet()
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operator in _ALLOCATIONS:
            name = operator.name().removeprefix("aten::")

            def allocate(*args: Any, _operator: Any = operator, **kwargs: Any) -> Any:
                return run(_operator, args, kwargs)

            for key in ("CUDA", "Lazy"):
                _library.impl(name, allocate, key)
        _library.impl("_copy_from", _copy_from, "Lazy")


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """The copy of C++ code that reads Python numbers straight into a new tensor, as `x[[0, 2]]` does."""
    run(torch.ops.aten.copy_.default, (target, source), {})
    return target


@contextlib.contextmanager
def imitate_gpu() -> Iterator[None]:
    """A context in which this process has a GPU.

    Raises:
        RuntimeError: inside another imitation, or on a machine with a GPU.
    """
    if torch.cuda.is_available():
        raise RuntimeError("this process has a GPU already")
    _register()
    # `with torch.device(...)` remembers the factories at its first use; the stand-ins below call those.
    torch.utils._device._device_constructors()
    DEVICE.index = 0
    DEVICE.generator.manual_seed(0)
    with contextlib.ExitStack() as undo:
        for owner, name, stand_in in list(patches()):
            before = vars(owner).get(name, _ABSENT)
            setattr(owner, name, stand_in)
            undo.callback(_restore, owner, name, before)
        yield


_ABSENT = object()


def _restore(owner: Any, name: str, before: Any) -> None:
    if before is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, before)
