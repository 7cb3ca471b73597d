"""Checks of folders and dtypes that need no torch, so that a mistake is reported at once."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_prism.errors import CheckpointError
from megatron_prism.models.model_folder import ARCHITECTURE, CONFIG, INDEX, SINGLE


def check_folders(*folders: Path, out: Path | None = None, dtype: str | None = None) -> None:
    """Check arguments before torch is imported, which takes seconds; the contents of the files are checked later.

    Raises:
        CheckpointError: for one of `folders` that is not a folder.
        DataError: if `out` exists and is not an empty folder.
        ConfigError: for an unknown `dtype`.
    """
    for folder in folders:
        # Unlike os.path.isdir, Path.is_dir raises for a name that is too long.
        if not os.path.isdir(folder):
            kind = "this is not a folder" if os.path.exists(folder) else "no such folder"
            # A path has one slash where an address has two.
            if str(folder).startswith(("http:/", "https:/")):
                kind = "a server does not give weights; give the folder of its model"
            raise CheckpointError(f"{folder}: {kind}")
    if out is not None:
        from megatron_prism.pipeline.output_folder import check_free

        check_free(out)
    if dtype is not None:
        from megatron_prism.conversion.stage import DTYPES
        from megatron_prism.pipeline.config import one_of

        one_of(dtype, DTYPES, "--dtype")


def check_models(*folders: Path, megatron: bool = True, hugging_face: bool = True) -> None:
    """Check that each folder has the files of a Megatron or Hugging Face model.

    Raises:
        CheckpointError: names the first folder that does not.
    """
    for folder in folders:
        if megatron and (folder / ARCHITECTURE).is_file():
            continue
        if not hugging_face:
            raise CheckpointError(
                f"{folder / ARCHITECTURE}: no such file; give a Megatron folder, as `prism convert import` writes it"
            )
        if not (folder / CONFIG).is_file():
            both = f"neither {ARCHITECTURE} (Megatron) nor {CONFIG} (Hugging Face)"
            missing = both if megatron else f"no {CONFIG}"
            raise CheckpointError(f"{folder}: the folder has {missing}; give the folder of a model")
        if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
            raise CheckpointError(
                f"{folder}: the folder has neither {SINGLE} nor {INDEX}; give a Hugging Face folder with safetensors"
            )
