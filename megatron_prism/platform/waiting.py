"""Waiting for other processes for longer than a collective may take, and for the files that they wrote.

A barrier over NCCL fails after its timeout (10 minutes by default) and occupies the GPUs. Here processes wait over
gloo, on the CPU, and an error names the ranks that did not arrive.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError

# The default group that a waiting group was made for, and that group.
_group: tuple[Any, Any] | None = None


def wait_for_all(minutes: float) -> None:
    """Return when all processes have called this.

    All must make the same calls. Without process groups it returns at once.

    Raises:
        RuntimeError: if a process does not arrive in time; rank 0's error names the missing ranks.
    """
    global _group
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    limit, world = timedelta(minutes=minutes), dist.group.WORLD
    if _group is None or _group[0] is not world:
        _group = (world, dist.new_group(backend="gloo", timeout=limit))
    dist.monitored_barrier(_group[1], timeout=limit, wait_all_ranks=True)


def wait_for_files(paths: Iterable[Path], seconds: float = 180.0) -> None:
    """Return when all these files, which other machines wrote into a shared folder, are listed here.

    NFS lists a folder from a cache that may be a minute old.

    Raises:
        DataError: if one is not listed in time.
    """
    deadline = time.monotonic() + seconds
    for path in paths:
        while path.name not in os.listdir(path.parent):
            if time.monotonic() > deadline:
                raise DataError(
                    f"{path}: written on another machine, but not visible here after {seconds:.0f} s; use a folder "
                    "that all machines share"
                )
            time.sleep(0.2)
