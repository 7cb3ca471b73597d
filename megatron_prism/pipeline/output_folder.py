"""Output folders that are written completely or not at all: they have a temporary name until they are complete."""

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
    """Yield a folder to write into; it is renamed to `out` when the block succeeds and removed when it fails.

    Raises:
        DataError: if `out` exists and is not an empty folder, or the disk is full.
    """
    out = Path(out)
    check_free(out)
    partial = partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as problem:
        raise DataError(f"{partial}: cannot create this folder ({problem.strerror})") from None
    try:
        yield partial
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
    except BaseException as problem:
        full = is_full_disk(problem, partial.parent)
        shutil.rmtree(partial, ignore_errors=True)
        if full and not isinstance(problem, PrismError):
            raise DataError(f"{out}: the disk is full; free some space and try again") from problem
        raise


def check_free(out: Path) -> None:
    """Raise a DataError if `out` exists and is not an empty folder, is no valid file name, or cannot be created."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
        above = next(folder for folder in out.absolute().parents if folder.exists())
    except OSError as problem:
        raise DataError(f"{out}: cannot use this path ({problem.strerror}); choose another") from None
    if taken:
        raise DataError(f"{out}: already exists and is not an empty folder; choose another name or remove it")
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(f"{out}: {above} is not a writable folder; choose another path")


def is_full_disk(problem: BaseException | None, folder: Path) -> bool:
    """Whether an error came from a full disk: by its error number, or because almost no space is left.

    Libraries report a full disk in many ways (OSError, RuntimeError from a zip writer), so free space counts, too.
    """
    seen = problem
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return shutil.disk_usage(folder).free < FULL_DISK_BYTES
