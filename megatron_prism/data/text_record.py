"""Records which tokenizer and text policy made a folder of tokens or trained a model, and compares these records.

Tokens of a different tokenizer are an error, because their ids mean other tokens. A different policy of the same
tokenizer is only a warning: the start token then differs from that of the training texts, which may be intended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.json_text import read_object
from megatron_prism.platform.console import get_logger

RECORD = "text.json"
KEYS = {"tokenizer": str, "begin": list, "end": list, "special_tokens": str}

log = get_logger(__name__)


def write_record(folder: Path, tokenizer: Tokenizer) -> None:
    """Write `text.json` into a folder of token files."""
    write_json(folder / RECORD, tokenizer.record())


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder of token files; None if there is none.

    Raises:
        DataError: if it is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    record = read_object(file)
    for key, wanted in KEYS.items():
        value = record.get(key)
        valid = isinstance(value, wanted) and (wanted is str or all(isinstance(name, str) for name in value))
        if not valid:
            raise DataError(
                f"{file}: not a record of a tokenizer ({key}={json.dumps(value)[:40]}); tokenize again"
            )
    return {key: record[key] for key in KEYS}


def check_tokens(tokens: Path, tokenizer: Tokenizer, folder: Path) -> dict[str, Any] | None:
    """Compare a folder of token files with the tokenizer in `folder`; returns the record of the tokens.

    Raises:
        ConfigError: if a different tokenizer made the tokens.
    """
    recorded = read_record(tokens)
    if recorded is None:
        return None
    if recorded["tokenizer"] != tokenizer.identity:
        raise ConfigError(
            f"{tokens}: made with a different tokenizer from {folder}, so the ids mean other tokens; tokenize the "
            "corpus with this tokenizer, or use the tokenizer that made the tokens"
        )
    _warn(recorded, tokenizer.record(), f"the tokens in {tokens}", f"the tokenizer in {folder}")
    return recorded


def check_model(model: Artifact, tokenizer: Tokenizer) -> None:
    """Warn if a model was trained on texts that were encoded differently, according to its receipt."""
    trained = model.metrics.get("text")
    if not isinstance(trained, Mapping) or "tokenizer" not in trained:
        return
    if trained["tokenizer"] != tokenizer.identity:
        log.warning(
            "%s was trained with a different tokenizer from this stage's; unless this one only adds tokens, "
            "its ids mean other tokens to the model",
            model.path,
        )
    _warn(trained, tokenizer.record(), f"the texts that {model.path} was trained on", "this stage")


def _warn(first: Mapping[str, Any], second: Mapping[str, Any], first_name: str, second_name: str) -> None:
    if first.get("begin") != second.get("begin"):
        log.warning(
            "%s begin with %s, but %s begins a text with %s; if this is not intended, make them equal (text.begin)",
            first_name,
            _shown(first["begin"]),
            second_name,
            _shown(second["begin"]),
        )


def _shown(names: list[str]) -> str:
    return " ".join(map(repr, names)) if names else "nothing"
