"""The tensors of several models, read side by side in blocks that fit the processor's cache, by a few threads.

Every block is read into the same memory and converted to fp32 there, so no new pages are touched. torch and file reads
release Python's lock, so the threads run in parallel.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from megatron_prism.conversion.file_ranges import FileRange
from megatron_prism.conversion.weights import Weights
from megatron_prism.errors import CheckpointError
from megatron_prism.merging.exact.workspace import Workspace

T = TypeVar("T")

# Elements of a block: enough to make Python's share of the time small, and few enough for a block to fit the last-level
# cache (two models in bf16: 5 MB for each thread).
BLOCK = 1 << 18
# Blocks submitted at a time. Between two waves, results are collected and Ctrl-C is handled.
WAVE = 64
MAX_THREADS = 4


@dataclass(frozen=True)
class Block:
    """`count` elements of a flattened tensor from element `first` on.

    Attributes:
        out_first: the element of the output at which they begin.
    """

    name: str
    first: int
    count: int
    out_first: int


def blocks(name: str, first: int, count: int, out_first: int = 0) -> Iterator[Block]:
    """Elements `first` .. `first + count` of a tensor, cut into blocks."""
    for start in range(0, count, BLOCK):
        yield Block(name, first + start, min(BLOCK, count - start), out_first + start)


class OpenFiles(AbstractContextManager["OpenFiles"]):
    """File descriptors by path. One thread opens them on first use; all are closed together."""

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._open: dict[Path, int] = {}

    def __getitem__(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, self._flags)
        return self._open[path]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()


class TensorBytes:
    """The bytes of one model's tensor, row by row, readable from any position.

    They are read from files. If a checkpoint is sharded along columns, the whole tensor is held in memory instead.
    """

    def __init__(self, model: Weights, name: str, files: OpenFiles) -> None:
        self.dtype = model.dtypes[name]
        self._name, self._whole, self._ranges = name, None, model.ranges(name) or []
        if not self._ranges:
            self._whole = memory(model.tensor(name).contiguous())
        self._handles = [files[each.file] for each in self._ranges]
        self._ends = list(accumulate(each.nbytes for each in self._ranges))

    def read(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on."""
        if self._whole is not None:
            out[:] = self._whole[start : start + len(out)]
            return
        done = 0
        while done < len(out):
            index = bisect_right(self._ends, start + done)
            each: FileRange = self._ranges[index]
            left = self._ends[index] - start - done
            piece = out[done : done + left]
            got = os.preadv(self._handles[index], [piece], each.offset + each.nbytes - left)
            if not got:
                raise CheckpointError(f"{each.file}: ends inside tensor '{self._name}'")
            done += got


def memory(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array).cast("B")


class Buffer:
    """Memory for one block of any dtype, as a tensor and as bytes. Views are cached, which saves time."""

    def __init__(self) -> None:
        self._memory = torch.empty(4 * BLOCK, dtype=torch.uint8)
        self._views: dict[tuple[torch.dtype, int], tuple[Tensor, memoryview]] = {}

    def view(self, dtype: torch.dtype, count: int) -> tuple[Tensor, memoryview]:
        """The first `count` elements of `dtype`."""
        found = self._views.get((dtype, count))
        if found is None:
            tensor = self._memory[: count * dtype.itemsize].view(dtype)
            found = self._views[dtype, count] = tensor, memory(tensor)
        return found


class Scratch:
    """One thread's memory.

    It has a block as stored and a block in fp32 for each model, a block for the result, and `space` for the exact sum.
    """

    def __init__(self, models: int) -> None:
        self._stored = [Buffer() for _ in range(models)]
        self._fp32 = [Buffer() for _ in range(models)]
        self._result, self._rounded = Buffer(), Buffer()
        self.space = Workspace(BLOCK)

    def read(self, sources: Sequence[TensorBytes], block: Block) -> tuple[list[Tensor], list[Tensor]]:
        """The block of every model, in fp32 and as stored. Both are valid until the next call."""
        as_stored = self.read_stored(sources, block)
        found = [
            raw if raw.dtype is torch.float32 else fp32.view(torch.float32, block.count)[0].copy_(raw)
            for raw, fp32 in zip(as_stored, self._fp32, strict=True)
        ]
        return found, as_stored

    def read_stored(self, sources: Sequence[TensorBytes], block: Block) -> list[Tensor]:
        """The block of every model as stored, valid until the next call."""
        found = []
        for source, stored in zip(sources, self._stored, strict=True):
            raw, view = stored.view(source.dtype, block.count)
            source.read(block.first * source.dtype.itemsize, view)
            found.append(raw)
        return found

    def result(self, count: int) -> Tensor:
        """Memory for a result in fp32."""
        return self._result.view(torch.float32, count)[0]

    def round(self, values: Tensor, dtype: torch.dtype) -> memoryview:
        """fp32 values rounded (to nearest, ties to even) to `dtype`, as bytes. They are valid until the next call."""
        tensor, view = self._rounded.view(dtype, values.numel())
        tensor.copy_(values)
        return view


class Workers(AbstractContextManager["Workers"]):
    """A few threads, each with its own `Scratch`, that process blocks.

    While they exist, torch uses one thread for each operation, because a block is too small to split.

    Args:
        threads: by default as many as there are cores, up to `MAX_THREADS`.
    """

    def __init__(self, models: int, threads: int | None = None) -> None:
        count = threads or min(MAX_THREADS, len(os.sched_getaffinity(0)))
        self._scratch = [Scratch(models) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        self._torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def map(self, work: Callable[[Scratch, Block], T], tasks: Iterable[Block]) -> Iterator[T]:
        """Call `work` with every block; the results come in the order of the blocks."""
        remaining = iter(tasks)
        while wave := list(islice(remaining, WAVE)):
            count = len(self._scratch)
            shares = [
                self._pool.submit(_work_on, work, scratch, wave[place::count])
                for place, scratch in enumerate(self._scratch)
            ]
            results = [share.result() for share in shares]
            for place in range(len(wave)):
                yield results[place % count][place // count]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._torch_threads)


def _work_on(work: Callable[[Scratch, Block], T], scratch: Scratch, share: Sequence[Block]) -> list[T]:
    return [work(scratch, block) for block in share]
