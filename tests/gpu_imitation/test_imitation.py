"""The imitation itself: what fails on a GPU fails in it, with CUDA's and NCCL's messages; what works there works."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gpu_imitation.processes import imitated

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU of its own")

FAULTS = {
    "mixed": "same device, but found at least two devices, cuda:0 and cpu",
    "stacked": "same device, but found at least two devices",
    "numpy": "can't convert cuda:0 device type tensor to numpy",
    "random generator": "Expected a 'cuda' device type for generator",
    "another rank's device": "this process computes on cuda:0, but asked for a tensor on cuda:1",
    "weight left behind": "same device, but found at least two devices",
    "all_reduce": "No backend type associated with device type cpu",
    "broadcast": "No backend type associated with device type cpu",
    "all_gather": "No backend type associated with device type cpu",
    "gathered from both": "No backend type associated with device type cpu",
}


def faults() -> dict[str, str]:
    """Every fault, committed; its name and the message that it got."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    layer = torch.nn.Linear(3, 3)
    faulty: dict[str, Any] = {
        "mixed": lambda: there + here,
        "stacked": lambda: torch.stack([there.sum(), torch.tensor(1.0)]),
        "numpy": there.numpy,
        "random generator": lambda: torch.empty(3, device="cuda").normal_(generator=torch.Generator()),
        "another rank's device": lambda: torch.ones(3, device="cuda:1"),
        "weight left behind": lambda: layer(there),
        "all_reduce": lambda: dist.all_reduce(here),
        "broadcast": lambda: dist.broadcast(here, 0),
        "all_gather": lambda: dist.all_gather_into_tensor(here.clone(), here),
        "gathered from both": lambda: dist.all_gather_into_tensor(there, here),
    }
    found = {}
    for name, commit in faulty.items():
        try:
            commit()
            found[name] = "nothing failed"
        except (RuntimeError, TypeError) as error:
            found[name] = str(error)
    dist.destroy_process_group()
    return found


def test_what_fails_on_a_gpu_fails():
    found = imitated(faults)
    assert found.keys() == FAULTS.keys()
    assert {name: message for name, message in found.items() if FAULTS[name] not in message} == {}


def device_semantics() -> dict[str, Any]:
    """What works with CUDA, too: moving, views, gradients, attributes that remain, random states, collectives."""

    from megatron_prism.platform import hardware

    found: dict[str, Any] = {"has_gpu": hardware.has_gpu(), "device": str(hardware.device())}
    layer = torch.nn.Linear(4, 2)
    weight = layer.weight
    weight.sequence_parallel = True
    expected = layer(torch.ones(1, 4)).sum().item()
    layer.to(hardware.device())
    found["the parameter is the same object"] = layer.weight is weight and weight.sequence_parallel
    found["still a parameter"] = isinstance(weight, torch.nn.Parameter) and weight.is_cuda
    found["type"] = weight.type()
    output = layer(torch.ones(1, 4, device="cuda")).sum()
    output.backward()
    found["same result"] = output.item() == expected
    found["gradient"] = (str(weight.grad.device), weight.grad.tolist())

    flat = torch.zeros(6, device="cuda")
    view = flat.view(2, 3)
    weight.data = view[:, :2].t()
    view.add_(1.5)
    found["a view shares memory"] = weight.tolist()

    first = torch.rand(3, device="cuda")
    state = torch.cuda.get_rng_state()
    second, host = torch.rand(3, device="cuda"), torch.rand(3)
    torch.cuda.set_rng_state(state)
    found["random state"] = torch.equal(second, torch.rand(3, device="cuda")) and not torch.equal(
        first, second
    )
    found["host draws are others"] = not torch.equal(host, second.cpu())
    found["a number from the host"] = (flat + torch.tensor(2.0)).tolist()
    found["indices from the host"] = flat[torch.tensor([0, 1])].tolist() == flat[[0, 1]].tolist()
    saved = io.BytesIO()
    torch.save({"flat": flat}, saved)
    saved.seek(0)
    found["saved"] = (
        torch.load(saved, map_location="cpu", weights_only=True)["flat"].tolist() == flat.tolist()
    )
    found["on meta"] = torch.nn.Linear(2, 2, device="meta").weight.is_meta

    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    dist.all_reduce(flat)
    dist.barrier()
    objects = [None]
    dist.all_gather_object(objects, {"answer": 42})
    found["objects"] = objects
    gloo = dist.new_group(backend="gloo")
    dist.all_reduce(torch.ones(2), group=gloo)
    dist.destroy_process_group()
    return found


def test_what_works_on_a_gpu_works():
    found = imitated(device_semantics)
    wrong = {name: value for name, value in found.items() if value is False}
    assert wrong == {}
    assert found["device"] == "cuda:0"
    assert found["type"] == "torch.cuda.FloatTensor"
    assert found["gradient"] == ["cuda:0", [[1.0] * 4] * 2]
    assert found["a view shares memory"] == [[1.5, 1.5], [1.5, 1.5]]
    assert found["a number from the host"] == [3.5] * 6
    assert found["objects"] == [{"answer": 42}]


def each_rank() -> list[Any]:
    rank = dist.get_rank()
    mine = torch.full((2,), float(rank), device="cuda")
    gathered = torch.empty(4, device="cuda")
    dist.all_gather_into_tensor(gathered, mine)
    if rank == 0:
        dist.send(gathered, 1)
    else:
        received = torch.empty(4, device="cuda")
        dist.recv(received, 0)
        mine = received[2:]
    total = mine.clone()
    dist.all_reduce(total)
    return [str(mine.device), gathered.tolist(), total.tolist()]


def test_two_ranks_have_a_device_each():
    assert imitated(each_rank, world=2) == ["cuda:0", [0.0, 0.0, 1.0, 1.0], [1.0, 1.0]]


def test_this_process_has_no_gpu():
    assert not torch.cuda.is_available()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(1, device="cuda")
