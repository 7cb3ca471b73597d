"""Copies bytes from file to file inside the kernel: conversion only moves rows, so this process need not read them.

`copy_file_range` (Linux) copies without passing the bytes through this process's memory. `cp` does the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.errors import CheckpointError

# Bytes read at a time if the kernel cannot copy between two file systems. They fit the processor's cache.
BLOCK = 1 << 17
KERNEL_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class FileRange:
    """`nbytes` bytes of a file, from `offset` on."""

    file: Path
    offset: int
    nbytes: int


def copy_ranges(ranges: Iterable[FileRange], target: int, offset: int) -> None:
    """Copy ranges one after the other into the open file `target`, from `offset` on.

    Raises:
        CheckpointError: if a source file is shorter than its range.
        OSError: if the target cannot be written.
    """
    for each in ranges:
        source = os.open(each.file, os.O_RDONLY)
        try:
            done = 0
            while done < each.nbytes:
                moved = _move(
                    source, target, each.nbytes - done, read_at=each.offset + done, write_at=offset + done
                )
                if not moved:
                    raise CheckpointError(
                        f"{each.file}: ends before byte {each.offset + each.nbytes}; the file is truncated"
                    )
                done += moved
        finally:
            os.close(source)
        offset += each.nbytes


def _move(source: int, target: int, count: int, *, read_at: int, write_at: int) -> int:
    """Copy at most `count` bytes and return how many were copied."""
    try:
        return os.copy_file_range(source, target, count, read_at, write_at)
    except OSError as problem:
        if problem.errno not in KERNEL_CANNOT_COPY:
            raise
    block = os.pread(source, min(count, BLOCK), read_at)
    return os.pwrite(target, block, write_at) if block else 0
