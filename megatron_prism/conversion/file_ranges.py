"""Bytes moved from file to file by the kernel: conversion keeps every byte and only moves rows, so none need pass here.

`copy_file_range` (Linux) moves pages without a copy in this process's memory, which is why `cp` is fast, too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.errors import CheckpointError

# For file systems between which the kernel does not copy; a block that fits the processor's cache.
BLOCK = 1 << 17
NOT_BETWEEN_THESE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class FileRange:
    """`nbytes` bytes of a file, from `offset` on."""

    file: Path
    offset: int
    nbytes: int


def copy_ranges(ranges: Iterable[FileRange], target: int, offset: int) -> None:
    """Copy ranges one after the other into the open file `target`, from `offset` on.

    Raises:
        CheckpointError: when a source file is shorter than its range.
        OSError: when the target cannot be written.
    """
    for each in ranges:
        source = os.open(each.file, os.O_RDONLY)
        try:
            done = 0
            while done < each.nbytes:
                moved = _move(source, target, each.nbytes - done, each.offset + done, offset + done)
                if not moved:
                    raise CheckpointError(f"{each.file}: ends before byte {each.offset + each.nbytes}")
                done += moved
        finally:
            os.close(source)
        offset += each.nbytes


def _move(source: int, target: int, count: int, read_at: int, write_at: int) -> int:
    """Copy some of `count` bytes and say how many."""
    try:
        return os.copy_file_range(source, target, count, read_at, write_at)
    except OSError as problem:
        if problem.errno not in NOT_BETWEEN_THESE:
            raise
    block = os.pread(source, min(count, BLOCK), read_at)
    return os.pwrite(target, block, write_at) if block else 0
