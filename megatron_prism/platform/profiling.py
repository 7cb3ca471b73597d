"""Traces of chosen steps, written by rank 0, for a browser's trace viewer (ui.perfetto.dev, chrome://tracing)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_prism.platform.hardware import has_gpu

FOLDER = "profile"


@contextmanager
def profiled(step: int, steps: Sequence[int], out: Path) -> Iterator[None]:
    """Write `OUT/profile/step_N.json` of what happens inside if `step` is one of `steps`.

    On CUDA also `step_N_memory.pickle`, for pytorch.org/memory_viz. Steps that are traced are slower.
    """
    if step not in steps or dist.get_rank() != 0:
        yield
        return
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if has_gpu():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.memory._record_memory_history()
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        yield
    profile.export_chrome_trace(str(folder / f"step_{step}.json"))
    if has_gpu():
        torch.cuda.memory._dump_snapshot(str(folder / f"step_{step}_memory.pickle"))
        torch.cuda.memory._record_memory_history(enabled=None)
