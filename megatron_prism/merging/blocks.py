"""Tensors of several models read side by side in blocks that fit the processor's cache, by a few threads.

A block is read into memory that is used again (no page is touched twice for the first time), becomes fp32 there, and is
forgotten. torch and file reads let go of Python's lock, so threads run side by side.
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
from megatron_prism.merging.exact import Workspace

T = TypeVar("T")

# Elements of a block: large enough that Python's part is small, small enough for the last cache (two models in bf16:
# 5 MB for each thread).
BLOCK = 1 << 18
# Blocks given out at a time: between two waves results are collected and Ctrl-C is heard.
WAVE = 64
MAX_THREADS = 4


@dataclass(frozen=True)
class Block:
    """`count` elements of a flattened tensor from `first` on, which begin at element `place` of what is written."""

    name: str
    first: int
    count: int
    place: int


def blocks(name: str, first: int, count: int, place: int = 0) -> Iterator[Block]:
    """Elements `first` .. `first + count` of a tensor, cut into blocks."""
    for start in range(0, count, BLOCK):
        yield Block(name, first + start, min(BLOCK, count - start), place + start)


class OpenFiles(AbstractContextManager["OpenFiles"]):
    """File descriptors by path, opened when first asked for (by one thread) and closed together."""

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
    """The bytes of one model's tensor, row by row, at any place.

    They lie in files, or, where a checkpoint was cut along columns, in memory: then one whole tensor is held.
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
    """A contiguous tensor's own memory."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array).cast("B")


class Buffer:
    """Memory for one block of any dtype, seen as a tensor and as bytes; views are kept, for making one costs time."""

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
    """One thread's memory: for each model a block as it is stored and one in fp32, a block for a result, and `space`
    for what the exact sum needs beside them.
    """

    def __init__(self, models: int) -> None:
        self._stored = [Buffer() for _ in range(models)]
        self._fp32 = [Buffer() for _ in range(models)]
        self._result, self._rounded = Buffer(), Buffer()
        self.space = Workspace(BLOCK)

    def read(self, sources: Sequence[TensorBytes], block: Block) -> tuple[list[Tensor], list[Tensor]]:
        """The block of every model in fp32 and as it is stored, valid until the next call."""
        found, as_stored = [], []
        for source, stored, fp32 in zip(sources, self._stored, self._fp32, strict=True):
            raw, view = stored.view(source.dtype, block.count)
            source.read(block.first * source.dtype.itemsize, view)
            as_stored.append(raw)
            if source.dtype is not torch.float32:
                raw = fp32.view(torch.float32, block.count)[0].copy_(raw)
            found.append(raw)
        return found, as_stored

    def result(self, count: int) -> Tensor:
        """Memory for a result in fp32."""
        return self._result.view(torch.float32, count)[0]

    def round(self, values: Tensor, dtype: torch.dtype) -> memoryview:
        """fp32 values rounded (to nearest, ties to even) to `dtype`, as bytes; valid until the next call."""
        tensor, view = self._rounded.view(dtype, values.numel())
        tensor.copy_(values)
        return view


class Workers(AbstractContextManager["Workers"]):
    """A few threads, each with its own `Scratch`, that work on blocks in turn.

    torch's own threads are kept out meanwhile: a block is too small to share.
    """

    def __init__(self, models: int) -> None:
        count = min(MAX_THREADS, len(os.sched_getaffinity(0)))
        self._scratch = [Scratch(models) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        self._torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def map(self, work: Callable[[Scratch, Block], T], given: Iterable[Block]) -> Iterator[T]:
        """`work` on every block; results in the order of the blocks."""
        remaining = iter(given)
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
