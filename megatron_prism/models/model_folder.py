"""Names of the files and folders that hold a model, and the reading of their JSON. Nothing here loads torch.

Training and `prism convert import` write a Megatron folder: `architecture.json`, a `checkpoint/`, and `hf/` with the
config, generation config and tokenizer that came with the weights. A Hugging Face folder is as published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_prism.errors import CheckpointError
from megatron_prism.pipeline.json_text import read_object

# A Megatron folder.
ARCHITECTURE, CHECKPOINT, HF_FILES = "architecture.json", "checkpoint", "hf"
# A file of every Megatron `torch_dist` checkpoint.
CHECKPOINT_METADATA = "metadata.json"
# A Hugging Face folder.
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_JSON, TOKENIZER_MODEL = "tokenizer.json", "tokenizer.model"
TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
# Every file that may belong to a tokenizer.
TOKENIZER_FILES = (
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    TOKENIZER_MODEL,
    "tekken.json",
    "vocab.json",
    "merges.txt",
)


# The Hugging Face folder inside an export artifact.
EXPORTED_MODEL = "model"


def find_model(folder: Path) -> Path:
    """The Megatron or Hugging Face folder of a model: `folder` itself, or `model/` in it.

    Raises:
        CheckpointError: if it is neither, or a link in it leads nowhere.
    """
    folder = Path(folder)
    if is_megatron(folder) or (folder / CONFIG).is_file():
        return folder
    inner = folder / EXPORTED_MODEL
    if inner.is_symlink() and not inner.exists():
        raise CheckpointError(
            f"{inner}: links to {inner.readlink()}, which does not exist; put the model there again, or name its "
            "new place"
        )
    if (inner / CONFIG).is_file():
        return inner
    raise CheckpointError(
        f"{folder}: the folder has neither {ARCHITECTURE} (Megatron) nor {CONFIG} (Hugging Face); give the folder of "
        "a model"
    )


def is_megatron(folder: Path) -> bool:
    """Whether a model's folder is a Megatron folder."""
    return (folder / ARCHITECTURE).is_file()


# The names of the longest sequence in a Hugging Face config, in the order of preference.
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "context_length", "seq_length")


def longest_sequence(folder: Path) -> int | None:
    """The number of tokens that a model of either kind can read; None if its config names none.

    Raises:
        CheckpointError: for a folder that `find_model` refuses, or a file that is not JSON.
    """
    folder = find_model(folder)
    config = read_json(folder / (ARCHITECTURE if is_megatron(folder) else CONFIG))
    inner = config.get("text_config")
    found = [each.get(key) for each in (config, inner) if isinstance(each, dict) for key in LENGTH_KEYS]
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; a CheckpointError names the file that is missing or is not one."""
    return read_object(path, CheckpointError)
