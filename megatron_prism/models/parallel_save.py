"""Saves and loads in which each data-parallel rank writes and reads its part, with threads of this process.

Upstream's writer (filesystem_async.py) forks processes and, for their results, starts a further process that outlives a
killed trainer. Threads end with the trainer. They also write in the background, from a copy of the state in memory.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import (
    get_default_load_sharded_strategy,
    get_default_save_sharded_strategy,
)
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.base import AsyncSaveShardedStrategy
from megatron.core.dist_checkpointing.strategies.filesystem_async import (
    FileSystemWriterAsync,
    _item_size,
    _split_by_size_and_type,
)
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.state_dict_saver import (
    save_state_dict_async_finalize,
    save_state_dict_async_plan,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.api import WRAPPED_EXCEPTION, _wrap_exception
from torch.distributed.checkpoint.filesystem import SerializationFormat, _write_item
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from megatron_prism.platform.host_copy import HostBuffers
from megatron_prism.platform.torch_save import without_checksums

# Files that one rank writes at the same time.
FILES_PER_RANK = 2


@dataclass
class PendingSave:
    """A planned save of this rank: first `copy_to_host` (optional), then `write` in any thread, then `finish`.

    All ranks call `finish` together, when each of them has written.
    """

    request: AsyncRequest

    @property
    def writer(self) -> ThreadedWriter:
        writer: ThreadedWriter = self.request.async_fn.__self__
        return writer

    @property
    def nbytes(self) -> int:
        """The bytes that this rank will write."""
        return self.writer.nbytes

    def copy_to_host(self, buffers: HostBuffers) -> None:
        """Copy the tensors, so that training may change them before they are written."""
        self.writer.copy_to_host(buffers)

    def write(self) -> None:
        """Write this rank's files. An error is reported by `finish`, on all ranks."""
        self.writer.write()

    def finish(self) -> None:
        """Write the metadata of the checkpoint; an error of any rank becomes an error of all."""
        for finalize in self.request.finalize_fns:
            finalize()


def plan_save(state: dict[str, Any], folder: Path) -> PendingSave:
    """Divide `state` among the ranks that have equal parts of it, and plan the files of this rank in `folder`.

    Rank 0 writes `common.pt` with everything that is not sharded. All ranks call this together.
    """
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelSaveStrategyWrapper(ThreadedSave(), group)
    request = dist_checkpointing.save(state, str(folder), strategy, async_sharded_save=True)
    assert request is not None
    return PendingSave(request)


def parallel_load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """dist_checkpointing.load in which data-parallel ranks read different parts and then exchange them."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(folder)), group)
    loaded: dict[str, Any] = dist_checkpointing.load(state, str(folder), strategy)
    return loaded


class ThreadedSave(AsyncSaveShardedStrategy):
    """Upstream's TorchDistSaveShardedStrategy (torch.py:640) with the writer below."""

    def __init__(self) -> None:
        default = get_default_save_sharded_strategy()
        super().__init__(default.backend, default.version)

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> AsyncRequest:
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        writer = ThreadedWriter(checkpoint_dir, thread_count=FILES_PER_RANK)
        plan, *_ = save_state_dict_async_plan(
            mcore_to_pyt_state_dict(by_key, False),
            writer,
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
        return AsyncRequest(writer.write, (), [lambda: save_state_dict_async_finalize(*plan)])

    def can_handle_sharded_objects(self) -> bool:
        return True


@dataclass
class _File:
    """A file of this rank, and what goes into it."""

    name: str
    objects: list[tuple[WriteItem, Any]] = field(default_factory=list)
    tensors: list[tuple[WriteItem, torch.Tensor]] = field(default_factory=list)


class ThreadedWriter(FileSystemWriterAsync):
    """Writes the files of one rank with one thread each."""

    files: list[_File]
    results: list[WriteResult] | Exception

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Note what to write. Nothing is copied: `write` copies tensor by tensor, unless `copy_to_host` was called."""
        prefix = plan.storage_data.prefix
        self.files = []
        self.results = []
        for items in _split_by_size_and_type(self.thread_count, plan.items):
            file = _File(f"{prefix}{len(self.files)}.distcp")
            for item in items:
                data = planner.resolve_data(item)
                if item.type == WriteItemType.BYTE_IO:
                    file.objects.append((item, data))
                else:
                    assert isinstance(data, torch.Tensor)
                    file.tensors.append((item, data.detach()))
            if items:
                self.files.append(file)

    @property
    def nbytes(self) -> int:
        tensors = sum(_item_size(item) for file in self.files for item, _ in file.tensors)
        return tensors + sum(data.getbuffer().nbytes for file in self.files for _, data in file.objects)

    def copy_to_host(self, buffers: HostBuffers) -> None:
        copies = iter(buffers.copy([tensor for file in self.files for _, tensor in file.tensors]))
        for file in self.files:
            file.tensors = [(item, next(copies)) for item, _ in file.tensors]

    def write(self) -> None:
        try:
            with ThreadPoolExecutor(max(1, len(self.files))) as threads, without_checksums():
                written = list(threads.map(self._write_file, self.files))
            self.results = [result for results in written for result in results]
        except Exception as problem:
            self.results = problem

    def _write_file(self, file: _File) -> list[WriteResult]:
        with open(os.path.join(self.checkpoint_dir, file.name), "wb") as stream:
            results = [self._write_item(stream, data, item, file.name) for item, data in file.objects]
            for item, tensor in file.tensors:
                results.append(self._write_item(stream, _compact(tensor), item, file.name))
            stream.flush()
            os.fsync(stream.fileno())
        return results

    def _write_item(self, stream: Any, data: Any, item: WriteItem, name: str) -> WriteResult:
        return _write_item(self.transforms, stream, data, item, name, SerializationFormat.TORCH_SAVE)

    def retrieve_write_results(self) -> list[WriteResult] | WRAPPED_EXCEPTION:
        if isinstance(self.results, Exception):
            try:
                raise self.results
            except Exception as problem:
                return _wrap_exception(problem)
        return self.results


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, without the rest of the storage that it is a view of, which torch.save would write."""
    tensor = tensor.cpu()
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone()
