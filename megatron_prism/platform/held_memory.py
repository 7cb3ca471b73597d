"""Counts the memory that a computation still holds when it has ended, for example what a layer keeps for backward."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HeldMemory(TorchDispatchMode):
    """A context that sees every storage that operations inside it create.

    How a tensor is kept does not matter: by autograd, by a hook, or by a closure.
    """

    def __init__(self) -> None:
        super().__init__()
        self._created: dict[int, tuple[StorageWeakRef, int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:
                self._created[storage._cdata] = StorageWeakRef(storage), storage.nbytes(), str(func)
        return result

    def alive(self) -> list[tuple[str, int]]:
        """(operation, bytes) of the storages that still exist, the largest first."""
        found = [(name, size) for weak, size, name in self._created.values() if not weak.expired()]
        return sorted(found, key=lambda each: -each[1])

    def bytes(self) -> int:
        """Bytes of the storages that still exist."""
        return sum(size for _, size in self.alive())


def _storages(values: Any) -> list[Any]:
    return [each.untyped_storage() for each in tree_leaves(values) if isinstance(each, torch.Tensor)]
