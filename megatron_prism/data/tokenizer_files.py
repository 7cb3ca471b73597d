"""The small files of a tokenizer folder: which file has the vocabulary, and which tokens have roles (such as
`eos_token`).

A model has a `tokenizer.json`, or only SentencePiece's `tokenizer.model`. The end token is defined in
`tokenizer_config.json`, `special_tokens_map.json`, the SentencePiece model, `generation_config.json` or `config.json`;
the first of these that defines it decides.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_prism.errors import DataError
from megatron_prism.models.model_folder import (
    CONFIG,
    GENERATION_CONFIG,
    HF_FILES,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
)
from megatron_prism.pipeline.json_text import read_json

ID_FILES = (GENERATION_CONFIG, CONFIG)
# Keys of tokenizer_config.json and special_tokens_map.json whose values are names of special tokens.
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")


def vocabulary_file(folder: Path) -> Path | None:
    """`tokenizer.json` if it exists, otherwise `tokenizer.model`, otherwise None."""
    for name in (TOKENIZER_JSON, TOKENIZER_MODEL):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    return None


def tokenizer_of_model(folder: Path) -> Path | None:
    """The folder of the tokenizer that came with a model of either kind; None if there is none."""
    return next((place for place in (folder / HF_FILES, folder) if vocabulary_file(place) is not None), None)


def tokenizer_file_names(folder: Path) -> list[str]:
    """The names of the files in a model's folder that make up its tokenizer."""
    # The end token may be named only there: without a tokenizer_config.json, transformers reads config.json.
    id_files = ID_FILES if not (folder / TOKENIZER_CONFIG).is_file() else ()
    return [name for name in (*TOKENIZER_FILES, *id_files) if (folder / name).is_file()]


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy these files."""
    for name in tokenizer_file_names(folder):
        shutil.copyfile(folder / name, out / name)


class TokenizerFolder:
    """The small files of a tokenizer folder.

    Attributes:
        path: the folder.
        config: the contents of `tokenizer_config.json`; empty if there is no such file.

    Raises:
        DataError: if the folder has no vocabulary, or a file is not a JSON object.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder)
        file = vocabulary_file(self.path)
        if file is None:
            raise DataError(
                f"{self.path / TOKENIZER_JSON}: missing, and so is {TOKENIZER_MODEL}; a tokenizer folder needs one of "
                "them"
            )
        self.vocabulary = file
        self.config = self._read(TOKENIZER_CONFIG)
        self._map = self._read(SPECIAL_TOKENS_MAP)

    def token(self, key: str) -> tuple[str, Path] | None:
        """The token name that the files give for `key` ("eos_token"), and the file.

        Raises:
            DataError: if the value is neither a string nor an object with "content".
        """
        for name, content in ((TOKENIZER_CONFIG, self.config), (SPECIAL_TOKENS_MAP, self._map)):
            value = content.get(key)
            if value is None or value == "":
                continue
            found = _content(value)
            if found is None:
                raise DataError(
                    f"{self.path / name}: {key}={json.dumps(value)[:60]} is not the name of a token; write it as text, "
                    'for example "</s>"'
                )
            return found, self.path / name
        return None

    def special_names(self) -> list[str]:
        """The distinct names that the token files mark as special."""
        names: dict[str, None] = {}
        for key in NAMED:
            if (named := self.token(key)) is not None:
                names[named[0]] = None
        for content in (self.config, self._map):
            for key in LISTED:
                values = content.get(key)
                # transformers writes a list, or a mapping from an attribute's name to the token.
                listed = list(values.values()) if isinstance(values, dict) else values
                for value in listed if isinstance(listed, list) else []:
                    if (found := _content(value)) is not None:
                        names[found] = None
        return list(names)

    def token_id(self, key: str) -> tuple[int, Path] | None:
        """The id that the model's configs give for `key` ("eos_token_id"; the first of a list), and the file."""
        for name in ID_FILES:
            value = self._read(name).get(key)
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, int) and not isinstance(first, bool):
                return first, self.path / name
        return None

    def added_tokens(self) -> dict[int, tuple[str, bool]]:
        """Tokens that are added to a SentencePiece model: id -> (name, special).

        `added_tokens.json` maps names to ids; `added_tokens_decoder` of tokenizer_config.json, ids to objects.
        """
        added = {
            number: (str(name), True)
            for name, number in self._read("added_tokens.json").items()
            if isinstance(number, int)
        }
        decoder = self.config.get("added_tokens_decoder")
        for number, value in decoder.items() if isinstance(decoder, dict) else ():
            name = _content(value)
            if name is not None and str(number).isdecimal():
                special = value.get("special", False) if isinstance(value, dict) else True
                added[int(number)] = (name, bool(special))
        return added

    def flag(self, key: str) -> bool:
        """A boolean of tokenizer_config.json; False if it is missing."""
        return self.config.get(key) is True

    def _read(self, name: str) -> Mapping[str, Any]:
        path = self.path / name
        if not path.is_file():
            return {}
        content = read_json(path)
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected an object with keys, found a {type(content).__name__}")
        return content


def named_id(folder: TokenizerFolder, key: str, find: Callable[[str], int | None]) -> int | None:
    """The id of the token that the files name for `key`; None if they define none.

    Raises:
        DataError: if the vocabulary does not have it.
    """
    named = folder.token(key)
    if named is None:
        return None
    name, file = named
    token_id = find(name)
    if token_id is None:
        raise DataError(f"{file}: {key} '{name}' is not in {folder.vocabulary.name}; name one of its tokens")
    return token_id


def _content(value: Any) -> str | None:
    """The name of a token, which may be written as text or as an object with "content"."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None
