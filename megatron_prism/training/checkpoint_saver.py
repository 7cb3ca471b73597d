"""Writes folders of sharded states, each complete or absent, in the foreground or while training goes on.

A folder is written under a temporary name, which rank 0 changes to the final one when all ranks are done. All ranks
make the same calls. At most one save is in progress.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from megatron_prism.errors import CheckpointError
from megatron_prism.models.checkpoint_io import first_line
from megatron_prism.models.parallel_save import PendingSave, plan_save
from megatron_prism.pipeline.artifact import PARTIAL_SUFFIX
from megatron_prism.platform.console import get_logger
from megatron_prism.platform.hardware import device
from megatron_prism.platform.host_copy import HostBuffers
from megatron_prism.platform.process_groups import cuda_requests_on_cpu
from megatron_prism.training.saved_state import OLD_SUFFIX

# Free space that a save leaves for logs and the files of other stages.
RESERVE_BYTES = 64 << 20

log = get_logger(__name__)


@dataclass
class _Save:
    """A save in progress."""

    folder: Path
    parts: list[PendingSave]
    label: str
    complete: Callable[[Path], None]
    done: Callable[[], None]
    began: float = field(default_factory=time.perf_counter)
    thread: threading.Thread | None = None

    @property
    def partial(self) -> Path:
        return self.folder.with_name(self.folder.name + PARTIAL_SUFFIX)

    def write(self) -> None:
        for part in self.parts:
            part.write()


class CheckpointSaver:
    """Saves states.

    Args:
        in_background: write from a copy in the host's memory while the caller goes on. The caller then calls `poll`
            after each step, and `wait` before it ends.
    """

    def __init__(self, *, in_background: bool = False) -> None:
        self.in_background = in_background
        self.waited = 0.0
        self._buffers: dict[str, HostBuffers] = {}
        self._save: _Save | None = None

    def save(
        self,
        folder: Path,
        parts: Mapping[str, Callable[[], dict[str, Any]]],
        *,
        label: str,
        prepare: Callable[[Path], None] = lambda partial: None,
        complete: Callable[[Path], None] = lambda partial: None,
        done: Callable[[], None] = lambda: None,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        """Save to `folder`, which appears only when it is complete.

        Args:
            parts: subfolder ('' for the folder itself) -> the function that makes its sharded state.
            label: what it is, for the log.
            prepare: called on all ranks to add files of this rank to the temporary folder.
            complete: called on rank 0 to add the last files to it.
            done: called on rank 0 when the folder has its final name.
            make_room: called on rank 0 if the disk is too full; it may remove what is dispensable.

        Raises:
            CheckpointError: on all ranks, if the disk has too little space or a rank cannot write.
        """
        self.wait()
        began = time.perf_counter()
        save = _Save(folder, [], label, complete, done)
        self._make_folders(save.partial, parts)
        with cuda_requests_on_cpu():
            for name, make in parts.items():
                save.parts.append(plan_save(make(), save.partial / name))
        self._check_space(save, make_room)
        prepare(save.partial)
        if self.in_background:
            for name, part in zip(parts, save.parts, strict=True):
                part.copy_to_host(self._buffers.setdefault(name, HostBuffers()))
            save.thread = threading.Thread(target=save.write, name="checkpoint", daemon=True)
            save.thread.start()
            self._save = save
        else:
            save.write()
            dist.barrier()
            self._finish(save)
        self.waited = time.perf_counter() - began

    def poll(self) -> None:
        """Complete a save that all ranks have written; does nothing if there is none."""
        if self._save is None:
            return
        assert self._save.thread is not None
        writing = torch.tensor([int(self._save.thread.is_alive())], device=device())
        dist.all_reduce(writing)
        if not int(writing):
            self.wait()

    def wait(self) -> None:
        """Complete the save in progress, if there is one."""
        save, self._save = self._save, None
        if save is None:
            return
        assert save.thread is not None
        save.thread.join()
        dist.barrier()
        self._finish(save)

    def _make_folders(self, partial: Path, parts: Mapping[str, Any]) -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            for name in parts:
                (partial / name).mkdir(parents=True, exist_ok=True)
        dist.barrier()

    def _check_space(self, save: _Save, make_room: Callable[[], None]) -> None:
        needed = torch.tensor([sum(part.nbytes for part in save.parts)], dtype=torch.int64, device=device())
        dist.all_reduce(needed)
        needed += RESERVE_BYTES
        free = torch.zeros_like(needed)
        if dist.get_rank() == 0:
            if free_bytes(save.partial) < int(needed):
                make_room()
            free.fill_(free_bytes(save.partial))
        dist.broadcast(free, 0)
        if int(free) < int(needed):
            self._give_up(save)
            raise CheckpointError(
                f"{save.folder}: needs {int(needed) / 1e9:.2f} GB, but the disk has {int(free) / 1e9:.2f} GB free, so "
                "nothing was written; the checkpoints before it are kept: free some space, or move the run's folder, "
                "and run again"
            )

    def _finish(self, save: _Save) -> None:
        try:
            with cuda_requests_on_cpu():
                for part in save.parts:
                    part.finish()
        except CheckpointException as problem:
            self._give_up(save)
            raise CheckpointError(
                f"{save.folder}: cannot be written ({first_line(problem)}); the checkpoints before it are kept"
            ) from problem
        if dist.get_rank() == 0:
            save.complete(save.partial)
            old = save.folder.with_name(save.folder.name + OLD_SUFFIX)
            shutil.rmtree(old, ignore_errors=True)
            if save.folder.exists():
                save.folder.rename(old)
            save.partial.rename(save.folder)
            shutil.rmtree(old, ignore_errors=True)
            save.done()
            seconds = time.perf_counter() - save.began
            waited = f", of which training waited {self.waited:.2f} s" if save.thread else ""
            log.info("%s saved in %.2f s%s", save.label, seconds, waited)
        dist.barrier()

    def _give_up(self, save: _Save) -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            with suppress(OSError):
                shutil.rmtree(save.partial)


def free_bytes(folder: Path) -> int:
    """The space of the folder's disk that is free for this user."""
    return shutil.disk_usage(folder).free
