"""What a verb can refuse at once: folders that are not there, a result that is, a dtype nobody knows. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_prism.errors import CheckpointError


def check_places(*folders: Path, out: Path | None = None, dtype: str | None = None) -> None:
    """Refuse before the seconds that torch takes to load; what is inside the folders is checked later.

    Raises:
        CheckpointError: for one of `folders` that is none.
        DataError: if `out` exists and is not an empty folder.
        ConfigError: for an unknown `dtype`.
    """
    for folder in folders:
        # Path.is_dir raises for a name that is too long.
        if not os.path.isdir(folder):
            raise CheckpointError(f"{folder}: no such folder")
    if out is not None:
        from megatron_prism.pipeline.output import check_free

        check_free(out)
    if dtype is not None:
        from megatron_prism.conversion.stage import DTYPES
        from megatron_prism.pipeline.config import one_of

        one_of(dtype, DTYPES, "--dtype")
