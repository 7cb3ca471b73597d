"""Which tokenizer, and which policy, made a folder of tokens or trained a model: kept beside it, and compared.

The ids of one tokenizer mean nothing to another: tokens of another tokenizer are an error. Two policies of one
tokenizer give a model texts that begin otherwise than those it learned from: that is a warning, for a user may have a
reason.
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
    """The record of a folder of token files; None where nobody wrote one.

    Raises:
        DataError: when it is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    record = read_object(file)
    for key, wanted in KEYS.items():
        value = record.get(key)
        whole = isinstance(value, wanted) and (wanted is str or all(isinstance(name, str) for name in value))
        if not whole:
            raise DataError(
                f"{file}: not a record of a tokenizer ({key}={json.dumps(value)[:40]}); tokenize again"
            )
    return {key: record[key] for key in KEYS}


def check_tokens(tokens: Path, tokenizer: Tokenizer, folder: Path) -> dict[str, Any] | None:
    """Compare a folder of token files with the tokenizer in `folder`; returns the record of the tokens.

    Raises:
        ConfigError: when another tokenizer made the tokens.
    """
    made = read_record(tokens)
    if made is None:
        return None
    if made["tokenizer"] != tokenizer.identity:
        raise ConfigError(
            f"{tokens}: made with another tokenizer than {folder}, so its ids mean other tokens; tokenize the corpus "
            "with this tokenizer, or give the stage the one that was used"
        )
    _warn(made, tokenizer.record(), f"the tokens in {tokens}", f"the tokenizer in {folder}")
    return made


def check_model(model: Artifact, tokenizer: Tokenizer) -> None:
    """Warn where a model's receipt says that it was trained on texts made otherwise than `tokenizer` makes them."""
    trained = model.metrics.get("text")
    if not isinstance(trained, Mapping) or "tokenizer" not in trained:
        return
    if trained["tokenizer"] != tokenizer.identity:
        log.warning(
            "%s was trained on tokens of another tokenizer than this stage's: unless the new one only adds tokens, the "
            "ids mean something else to it",
            model.path,
        )
    _warn(trained, tokenizer.record(), f"the texts that {model.path} was trained on", "this stage")


def _warn(first: Mapping[str, Any], second: Mapping[str, Any], one: str, other: str) -> None:
    if first.get("begin") != second.get("begin"):
        log.warning(
            "%s begin with %s, and %s would begin a text with %s; unless that is meant, make them equal (text.begin)",
            one,
            _shown(first["begin"]),
            other,
            _shown(second["begin"]),
        )


def _shown(names: list[str]) -> str:
    return " ".join(map(repr, names)) if names else "nothing"
