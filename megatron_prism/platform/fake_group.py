"""One rank of a job of any size in one process: a process group whose collectives do nothing.

torch's `fake` backend has every collective and no communication. It is registered for the CPU and for CUDA, but
`batch_isend_irecv`, with which Megatron's pipeline stages exchange tensors (p2p_communication.py:121), looks for the
backend of the tensors' device, which is `meta` here. So the same backend is registered once more, with that device.
The collectives with which the buckets of Megatron's DDP are gathered and reduced together
(param_and_grad_buffer.py:283, 452) have no kernel for meta tensors; they get one that does nothing, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FakeWork, Work
from torch.testing._internal.distributed.fake_pg import _create_fake_pg

NAME = "shapes"
DEVICES = ["cpu", "cuda", "meta"]
COALESCED = (
    "allgather_into_tensor_coalesced_",
    "reduce_scatter_tensor_coalesced_",
    "allreduce_coalesced_",
)
_kernels: list[torch.library.Library] = []


def _register() -> None:
    """What torch lacks for meta tensors. There is no way back, and nothing else could use a kernel for meta tensors."""
    if _kernels:
        return
    dist.Backend.register_backend(NAME, _create_fake_pg, extended_api=True, devices=DEVICES)
    library = torch.library.Library("c10d", "IMPL")
    for name in COALESCED:
        library.impl(name, lambda *inputs, **keywords: Work.boxed(FakeWork()), "Meta")
    _kernels.append(library)


@contextlib.contextmanager
def one_rank_of(world_size: int, rank: int) -> Iterator[None]:
    """This process is one rank of `world_size`, as far as `platform.process_groups.session` and Megatron can see.

    Raises:
        RuntimeError: inside another process group.
    """
    if dist.is_initialized():
        raise RuntimeError("a process group is running already in this process")
    _register()
    new_group, all_gather_object = dist.new_group, dist.all_gather_object
    variables = {"WORLD_SIZE": str(world_size), "RANK": str(rank)}
    before = {name: os.environ.get(name) for name in variables}

    def fake_group(*inputs: Any, **keywords: Any) -> Any:
        # parallel_state.py:626 asks for gloo groups beside the others, and those would connect to other processes.
        return new_group(*inputs, **keywords | {"backend": NAME})

    def everyone_has(objects: list[Any], mine: Any, group: Any = None) -> None:
        # Objects travel as tensors of bytes, whose numbers would be needed (optimizer/__init__.py:181).
        objects[:] = [mine] * len(objects)

    os.environ.update(variables)
    dist.new_group, dist.all_gather_object = fake_group, everyone_has  # type: ignore[assignment]
    try:
        dist.init_process_group(NAME, store=dist.HashStore(), rank=rank, world_size=world_size)
        yield
    finally:
        dist.new_group, dist.all_gather_object = new_group, all_gather_object
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if dist.is_initialized():
            dist.destroy_process_group()
