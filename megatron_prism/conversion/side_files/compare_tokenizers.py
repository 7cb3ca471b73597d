"""A comparison of two tokenizer folders.

Two tokenizers are compared by their effect on text, not by their files: different versions of a program write the same
tokenizer differently.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.conversion.side_files.tokenizer_facts import (
    VOCABULARIES,
    load_tokenizer,
    stored_vocabulary,
)
from megatron_prism.data.tokenizer_files import TokenizerFolder
from megatron_prism.errors import ArtifactError, CheckpointError
from megatron_prism.models.model_folder import TOKENIZER_JSON, read_json

# Settings that programs leave in the file and that do not affect the vocabulary.
IGNORED_KEYS = ("truncation", "padding")
# Parts of a tokenizer.json that decide the ids of a text, in the order in which they act.
ENCODING = ("normalizer", "pre_tokenizer", "model")
# A text with many scripts, spaces, digits, code, contractions, composed and decomposed accents, and characters beyond
# 16 bits.
PROBE = (
    "The committee's 3 members didn't agree: 1234567 < 89,000.50%!  Two  spaces,\ttabs\r\n\n\nlines. HTTPServer "
    "camelCase snake_case def f(x):\n    return x**2 # \u00e9 e\u0301 \u00c5 \ufb01 \u00bd \u2460 \u212b stra\u00dfe "
    "I\u0307stanbul \u041c\u043e\u0441\u043a\u0432\u0430 \u03b5\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac "
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 \u4e2d\u6587\u5b57 "
    "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \U0001f600\u200d\U0001f525 \u00a0\u2003\u2014\u201c"
    "quoted\u201d <s> </s> <|endoftext|> [INST] aaaa ABC abc "
)


@dataclass(frozen=True)
class Comparison:
    """How a second tokenizer differs from the first. All fields are None if they are the same.

    Attributes:
        conflict: a token with two ids, or an id with two tokens. Such models cannot be merged.
        choice: why the user must choose a tokenizer: only one has a token, or a text gets different ids.
        remark: a difference that changes no id.
    """

    conflict: str | None = None
    choice: str | None = None
    remark: str | None = None


def compare_tokenizers(first: Path, second: Path) -> Comparison:
    """Compare two folders that both have a tokenizer (`has_tokenizer`)."""
    mine, theirs = first / TOKENIZER_JSON, second / TOKENIZER_JSON
    if not (mine.is_file() and theirs.is_file()):
        return _compare_loaded(first, second)
    same = mine.read_bytes() == theirs.read_bytes()
    if same and TokenizerFolder(first).added_tokens() == TokenizerFolder(second).added_tokens():
        return Comparison()
    found = _compare_vocabularies(stored_vocabulary(first), stored_vocabulary(second), mine, theirs)
    if found is not None:
        return found
    if same:
        return Comparison()
    written, other = read_json(mine), read_json(theirs)
    backend, other_backend = _backend(written, mine), _backend(other, theirs)
    parts, other_parts = _meaning(backend), _meaning(other_backend)
    differing = [key for key in parts.keys() | other_parts.keys() if parts.get(key) != other_parts.get(key)]
    if not differing:
        return Comparison()
    names = ", ".join(f"'{key}'" for key in sorted(differing))
    ids, other_ids = (each.encode(PROBE, add_special_tokens=False).ids for each in (backend, other_backend))
    # The vocabularies are the same here, so if 'model' differs, its merges or scores do.
    if ids != other_ids or "model" in differing:
        return Comparison(choice=f"{theirs}: splits text differently from {mine} (different: {names})")
    encoding = any(key in differing for key in ENCODING)
    how = "a test text gets the same ids" if encoding else "this does not affect the ids of a text"
    return Comparison(remark=f"{theirs}: different from {mine} in {names}; {how}")


def _compare_vocabularies(
    mine: dict[str, int] | None, theirs: dict[str, int] | None, first: Path, second: Path
) -> Comparison | None:
    """A conflict or a choice; None if the vocabularies are the same."""
    if mine is None or theirs is None or mine == theirs:
        return None
    tokens = {number: token for token, number in mine.items()}
    for token, number in theirs.items():
        known = mine.get(token)
        if known is not None and known != number:
            return Comparison(
                conflict=f"{second}: token {token!r} has the id {number}, but in {first} the id {known}"
            )
        if known is None and number in tokens:
            return Comparison(
                conflict=f"{second}: the id {number} is token {token!r}, but in {first} token {tokens[number]!r}"
            )
    only = sorted(mine.keys() ^ theirs.keys(), key=lambda token: mine.get(token, theirs.get(token, 0)))
    owner = first if only[0] in mine else second
    return Comparison(choice=f"{owner}: has the token {only[0]!r}, which the other tokenizer does not have")


def _backend(content: dict[str, Any], path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(
            json.dumps({key: content[key] for key in content if key not in IGNORED_KEYS})
        )
    except Exception as problem:  # the library raises bare Exceptions
        raise CheckpointError(f"{path}: its tokenizer cannot be read ({problem})") from None


def _meaning(backend: Any) -> dict[str, Any]:
    """The parts of a tokenizer as the library writes them: with all defaults, and merges in one spelling."""
    parts = json.loads(backend.to_str())
    found = {key: _normalized(value) for key, value in parts.items() if key not in IGNORED_KEYS}
    found["added_tokens"] = sorted(parts.get("added_tokens") or [], key=lambda each: each["id"])
    return found


def _normalized(part: Any) -> Any:
    """A part without settings that change no id: sequences with one step, and `trim_offsets`."""
    if isinstance(part, dict):
        for steps in ("normalizers", "pretokenizers", "processors", "decoders"):
            if part.get("type") == "Sequence" and len(part.get(steps) or []) == 1:
                return _normalized(part[steps][0])
        return {key: _normalized(value) for key, value in part.items() if key != "trim_offsets"}
    if isinstance(part, list) and any(isinstance(each, dict) for each in part):
        return [_normalized(each) for each in part]
    return part


def _compare_loaded(first: Path, second: Path) -> Comparison:
    """Compare two folders if one has no tokenizer.json: by file, or as transformers reads them."""
    name = next(name for name in VOCABULARIES if (first / name).is_file())
    other = next(name for name in VOCABULARIES if (second / name).is_file())
    if name == other and (first / name).read_bytes() == (second / other).read_bytes():
        return Comparison()
    try:
        mine, theirs = load_tokenizer(first), load_tokenizer(second)
    except ArtifactError as problem:
        return Comparison(choice=f"{first / name} and {second / other} cannot be compared ({problem})")
    found = _compare_vocabularies(mine.get_vocab(), theirs.get_vocab(), first / name, second / other)
    if found is not None:
        return found
    ids, other_ids = (each(PROBE, add_special_tokens=False)["input_ids"] for each in (mine, theirs))
    if ids != other_ids:
        return Comparison(choice=f"{second / other}: splits text differently from {first / name}")
    return Comparison(
        remark=f"{second / other} and {first / name}: these have the same vocabulary, and a test text gets the same ids"
    )
