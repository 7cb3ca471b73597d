"""Run a function in processes of their own that have an imitated GPU each, and get what it returns."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import warm

from gpu_imitation.imitation import imitate_gpu


def imitated(target: Callable[..., Any], *arguments: Any, world: int = 1, timeout: float = 300) -> Any:
    """What `target(*arguments)` returns on rank 0 of `world` processes; it must be expressible in JSON.

    With one process the product starts its own process group, as `prism` does; with several there is one already.
    """
    return _run(_with_gpu, target, arguments, world, timeout)


def on_cpu(target: Callable[..., Any], *arguments: Any, timeout: float = 300) -> Any:
    """The same in a process without an imitated GPU."""
    return _run(_answer, target, arguments, 1, timeout)


def _run(how: Callable[..., None], target: Any, arguments: Any, world: int, timeout: float) -> Any:
    with tempfile.TemporaryDirectory(prefix="prism-imitation-") as folder:
        answer = Path(folder) / "answer.json"
        if world > 1:
            warm.ranks(how, answer, target, arguments, world=world, timeout=timeout)
            return json.loads(answer.read_text())
        child = warm.Child(how, answer, target, arguments)
        try:
            code = child.wait(timeout)
        finally:
            child.kill()
        assert code == 0, f"the process ended with {code}:\n{child.stderr[-6000:]}"
        return json.loads(answer.read_text())


def _with_gpu(answer: Path, target: Callable[..., Any], arguments: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    with imitate_gpu():
        if dist.is_initialized():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            _replace_group()
        _answer(answer, target, arguments)


def _replace_group() -> None:
    """In place of the group that `warm.ranks` made, one that serves only the device."""
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    store = dist.PrefixStore("imitated", dist.distributed_c10d._get_default_store())
    dist.destroy_process_group()
    dist.init_process_group("nccl", store=store, rank=rank, world_size=world)


def _answer(answer: Path, target: Callable[..., Any], arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    result = target(*arguments)
    if int(os.environ.get("RANK", "0")) == 0:
        answer.write_text(json.dumps(result))
