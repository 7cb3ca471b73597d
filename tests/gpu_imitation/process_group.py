"""A process group that serves only the imitated device, as NCCL's does.

The group is gloo, registered for device type `cuda` only: a tensor on the CPU gets torch's own error, "No backend type
associated with device type cpu". The tensors inside device tensors travel through a twin of the group, which offers the
same gloo backend for the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

BACKEND = "cuda:gloo"
_GROUP = "__torch__.torch.classes.c10d.ProcessGroup"
_twins: dict[str, tuple[dist.ProcessGroup, dist.ProcessGroup]] = {}


def as_imitated(backend: Any) -> Any:
    """The backend to create where a program asks for `backend`."""
    return BACKEND if backend == "nccl" else backend


def _twin(group: dist.ProcessGroup) -> dist.ProcessGroup:
    known = _twins.get(group.group_name)
    if known is not None and known[0] is group:
        return known[1]
    twin = dist.ProcessGroup(group.rank(), group.size())
    kind = dist.ProcessGroup.BackendType.GLOO
    twin._register_backend(torch.device("cpu"), kind, group._get_backend(torch.device("cuda")))
    twin._set_default_backend(kind)
    twin._set_group_name(group.group_name)
    _twins[group.group_name] = (group, twin)
    return twin


def collective(func: Any, args: Any, kwargs: Any) -> Any:
    """A collective on device tensors, done by gloo on the tensors inside."""
    from gpu_imitation.device_tensor import DeviceTensor

    owners: dict[int, torch.Tensor] = {}

    def unwrap(value: Any) -> Any:
        if isinstance(value, DeviceTensor):
            owners[id(value.inside)] = value
            return value.inside
        if isinstance(value, torch.Tensor):
            raise RuntimeError(f"No backend type associated with device type {value.device.type} ({func})")
        if isinstance(value, list | tuple):
            return type(value)([unwrap(item) for item in value])
        return value

    plain = []
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if str(argument.type) == _GROUP:
            plain.append(_twin(dist.ProcessGroup.unbox(value)).boxed())
        else:
            plain.append(unwrap(value))
    result = func(*plain, **kwargs)

    def wrap(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return owners.get(id(value)) if id(value) in owners else DeviceTensor(value)
        if isinstance(value, list | tuple):
            return type(value)([wrap(item) for item in value])
        return value

    return wrap(result)
