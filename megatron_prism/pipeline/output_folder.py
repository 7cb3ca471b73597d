"""A folder that is written whole or not at all: under a temporary name until it is complete."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_prism.errors import DataError, PrismError
from megatron_prism.pipeline.artifact import partial_path

FULL_DISK_BYTES = 1 << 20


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to write into; it takes the name `out` when the block ends well and vanishes when it does not.

    Raises:
        DataError: when `out` exists and is not an empty folder, or the disk is full.
    """
    out = Path(out)
    check_free(out)
    partial = partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as problem:
        raise DataError(f"{partial}: cannot be made ({problem.strerror})") from None
    try:
        yield partial
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
    except BaseException as problem:
        full = is_full_disk(problem, partial.parent)
        shutil.rmtree(partial, ignore_errors=True)
        if full and not isinstance(problem, PrismError):
            raise DataError(
                f"{out}: the disk that holds it is full; free some space and try again"
            ) from problem
        raise


def check_free(out: Path) -> None:
    """A DataError if `out` exists and is not an empty folder, or is no name that a file can have."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as problem:
        raise DataError(f"{out}: cannot be used ({problem.strerror}); choose another name") from None
    if taken:
        raise DataError(f"{out}: exists and is not an empty folder; choose another name or remove it")


def is_full_disk(problem: BaseException | None, folder: Path) -> bool:
    """Whether an error says so itself, or the disk has next to nothing left.

    Libraries report a full disk in many ways (OSError, RuntimeError from a zip writer), so the disk is asked, too.
    """
    seen = problem
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return shutil.disk_usage(folder).free < FULL_DISK_BYTES
