"""Counts the bytes of every tensor that exists, and their largest sum, while operations run in shapes only.

It also refuses what a device with numbers would refuse and meta tensors let pass: a matrix product of two dtypes, and
a tensor that was left on the CPU.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_prism.platform.fake_results import VIEW, Results, kind_of

_aten = torch.ops.aten
# Meta kernels of these do not compare the dtypes of the factors.
_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.addmm.default: 1,
    _aten.mm.out: 0,
    _aten.addmm.out: 1,
    _aten.addmm_.default: 1,
}
# Operations that read from another device.
_ACROSS = {_aten.copy_.default, _aten._to_copy.default, _aten._foreach_copy_.default}


class LiveBytes(TorchDispatchMode):
    """A context that counts the storages that operations inside it create, as long as they exist.

    Attributes:
        live: bytes that exist now.
        peak: the largest `live` since `reset_peak`.
        operations: how many ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.operations = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._results = Results()

    def reset_peak(self) -> None:
        self.peak = self.live

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled in a dry run. Otherwise torch wraps every call to keep its compiler away
        # (_python_dispatch.py:111), which takes as long as the call itself.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            kind = kind_of(func)
            if kind == VIEW:
                return func(*args, **kwargs)
            result = self._results.known(kind, func, args, kwargs)
            if result is None:
                _check(func, args)
                result = self._results.find(kind, func, args, kwargs)
        if isinstance(result, Tensor):
            self._count(result)
        elif isinstance(result, tuple | list):
            for each in result:
                if isinstance(each, Tensor):
                    self._count(each)
        return result

    def _count(self, tensor: Tensor) -> None:
        if not tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()

        def forget(_: Any) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, forget)
        self.live += size
        if self.live > self.peak:
            self.peak = self.live


def _check(func: Any, args: Any) -> None:
    if func in _PRODUCTS:
        first, second = args[_PRODUCTS[func]], args[_PRODUCTS[func] + 1]
        if first.dtype is not second.dtype:
            raise RuntimeError(f"{func}: a matrix product of {first.dtype} and {second.dtype}")
    if func in _ACROSS or func.namespace != "aten":
        return
    tensors = [each for each in args if isinstance(each, Tensor)]
    if any(each.is_meta for each in tensors):
        for each in tensors:
            if not each.is_meta and each.dim():
                raise RuntimeError(f"{func}: a tensor {tuple(each.shape)} was left on the {each.device.type}")
