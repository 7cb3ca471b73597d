"""The config.json of exported weights: the one that came with the model, changed only where the model has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.families import architecture_from_config, hf_config
from megatron_prism.models.model_folder import CONFIG, read_json
from megatron_prism.models.rope import RopeScaling
from megatron_prism.models.rope_config import ROPE_KEYS
from megatron_prism.pipeline.artifact import write_json

# transformers 5 reads the first and falls back to the second; versions before 4.56 read only the second.
DTYPE_KEYS = ("dtype", "torch_dtype")


def write_config(
    folder: Path, architecture: Architecture, dtype: torch.dtype, extra: Mapping[str, Any]
) -> None:
    """Write `folder/config.json` for these weights.

    If the imported model's config is already there, only the keys in which the architecture has changed and the dtype
    are updated. Otherwise the config is made from the architecture and `extra`.
    """
    path, name = folder / CONFIG, str(dtype).removeprefix("torch.")
    if not path.is_file():
        write_json(path, {**hf_config(architecture), **extra, **dict.fromkeys(DTYPE_KEYS, name)})
        return
    carried = read_json(path)
    config = updated_config(carried, architecture)
    if any(config.get(key) not in (name, None) for key in DTYPE_KEYS):
        config |= dict.fromkeys(DTYPE_KEYS, name)
    if config != carried:
        write_json(path, config)


def dtype_remarks(config: Mapping[str, Any], dtype: torch.dtype) -> list[str]:
    """A remark if a config names two dtypes, or another dtype than that of the tensors. The tensors keep theirs."""
    first, second = (_dtype_name(config.get(key)) for key in DTYPE_KEYS)
    named, found = first or second, _dtype_name(str(dtype))
    if first is None or second is None or first == second:
        if named in (None, found):
            return []
        return [
            f"config.json: dtype={named!r}, but the tensors are {found}; transformers would convert them. They keep "
            f"their dtype here, and a config.json that is written for them names {found}"
        ]
    return [
        f"config.json: dtype={first!r} and torch_dtype={second!r} differ: transformers 5 reads the first, and versions "
        "before 4.56 the second; the tensors keep their dtype"
    ]


def _dtype_name(value: Any) -> Any:
    """'bfloat16' also for 'torch.bfloat16', as older programs wrote it."""
    return value.removeprefix("torch.") if isinstance(value, str) else value


def updated_config(config: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """`config`, changed in the keys in which `architecture` differs from the architecture that it describes.

    All rotary settings change together. A spelling that stayed would contradict the others, or be the only one that
    some version of transformers reads.
    """
    before = architecture_from_config(config)
    old, new = hf_config(before), hf_config(architecture)
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    made = {**config, **changed}
    # A number that one spelling omits may be derived from a key that has changed.
    wanted = _rope(architecture)
    if _rope(before) != wanted or _rope(architecture_from_config(made)) != wanted:
        made = {key: value for key, value in made.items() if key not in ROPE_KEYS}
        made |= {key: new[key] for key in ROPE_KEYS if key in new}
    return made


def _rope(architecture: Architecture) -> tuple[float, RopeScaling | None]:
    return architecture.rope_theta, architecture.rope_scaling
