"""What a verb can refuse at once: folders that are not there, a result that is, a dtype nobody knows. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_prism.errors import CheckpointError
from megatron_prism.models.model_folder import ARCHITECTURE, CONFIG, INDEX, SINGLE


def check_folders(*folders: Path, out: Path | None = None, dtype: str | None = None) -> None:
    """Refuse before the seconds that torch takes to load; what the files in the folders hold is checked later.

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
        from megatron_prism.pipeline.output_folder import check_free

        check_free(out)
    if dtype is not None:
        from megatron_prism.conversion.stage import DTYPES
        from megatron_prism.pipeline.config import one_of

        one_of(dtype, DTYPES, "--dtype")


def check_models(*folders: Path, megatron: bool = True, hugging_face: bool = True) -> None:
    """Refuse folders that lack the very files by which a model of either kind is known.

    Raises:
        CheckpointError: naming the first such folder.
    """
    for folder in folders:
        if megatron and (folder / ARCHITECTURE).is_file():
            continue
        if not hugging_face:
            raise CheckpointError(
                f"{folder / ARCHITECTURE}: no such file; a folder of `prism convert import` has one"
            )
        if not (folder / CONFIG).is_file():
            kinds = f"neither a Megatron folder ({ARCHITECTURE}) nor" if megatron else "not"
            raise CheckpointError(f"{folder}: {kinds} a Hugging Face one ({CONFIG})")
        if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
            raise CheckpointError(
                f"{folder}: neither {SINGLE} nor {INDEX}; a Hugging Face folder with safetensors is needed"
            )
