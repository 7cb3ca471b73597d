"""Keeps the token ids in config.json and generation_config.json consistent with the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prism.conversion.side_files.tokenizer_facts import TokenizerFacts, stored_vocabulary
from megatron_prism.data.tokenizer_files import TokenizerFolder
from megatron_prism.errors import ArtifactError, PrismError
from megatron_prism.models.hf_config import shown
from megatron_prism.models.model_folder import CONFIG, GENERATION_CONFIG, read_json
from megatron_prism.pipeline.artifact import write_json

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Other keys of generation_config.json with token ids. They are valid for one vocabulary only.
OTHER_ID_KEYS = (
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens"),
    *("begin_suppress_tokens", "bad_words_ids", "force_words_ids", "sequence_bias"),
)


def check_fits(facts: TokenizerFacts, vocab_size: int, folder: Path) -> None:
    """Raise an ArtifactError if a token of the tokenizer has no row in the model's embedding."""
    if facts.largest >= vocab_size:
        token = next(token for token, number in facts.vocabulary.items() if number == facts.largest)
        raise ArtifactError(
            f"{folder}: token {token!r} has the id {facts.largest}, but the model has vocab_size={vocab_size}; name "
            "the tokenizer with which the model was trained"
        )


def update_token_ids(folder: Path, facts: TokenizerFacts, before: Mapping[str, int] | None) -> list[str]:
    """Change the token ids in the configs of `folder` that contradict the new tokenizer.

    An id or a list of ids stays if its tokens have the same ids in both tokenizers and the new tokenizer's id is among
    them. So a chat model keeps its list of end tokens when only the template changes. In config.json an id that is no
    longer valid becomes null, because transformers fills in a default for an absent key.

    Args:
        facts: of the tokenizer that is now in the folder.
        before: token -> id of the tokenizer that came with the model; None if it is not known.

    Returns:
        One line for each key that changed.
    """
    remarks = []
    for name in (CONFIG, GENERATION_CONFIG):
        path = folder / name
        if not path.is_file():
            continue
        content = read_json(path)
        changed = _changed(content, facts, before, name == GENERATION_CONFIG)
        for key in changed:
            remarks.append(
                f"{name}: {key} {_shown(content, key)} becomes {_shown(changed, key)}, as in the tokenizer"
            )
        if changed:
            write_json(path, content | changed)
    return remarks


def _changed(
    content: Mapping[str, Any], facts: TokenizerFacts, before: Mapping[str, int] | None, generation: bool
) -> dict[str, Any]:
    tokens = {} if before is None else {number: token for token, number in before.items()}

    def same(number: int) -> bool:
        return number in tokens and facts.vocabulary.get(tokens[number]) == number

    found: dict[str, Any] = {}
    for key, own in facts.ids.items():
        value = content.get(key)
        if value is None:
            # In generation_config.json an absent key means no token. In config.json it means the default of the class.
            may_be_set = key in content or (key in TOKEN_IDS and not generation)
            if may_be_set and own is not None:
                found[key] = own
            continue
        numbers = _numbers(value)
        kept = bool(numbers) and all(map(same, numbers)) and (own is None or own in numbers)
        if not kept and value != own:
            found[key] = own
    if generation and before != facts.vocabulary:
        for key in OTHER_ID_KEYS:
            value = content.get(key)
            if value is not None and not (_numbers(value) and all(map(same, _numbers(value)))):
                found[key] = None
    return found


def _shown(content: Mapping[str, Any], key: str) -> str:
    return json.dumps(content[key]) if key in content else "(absent)"


def _numbers(value: Any) -> list[Any]:
    """The ids in a value, which may be a number or nested lists of numbers; none if it is something else."""
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if type(value) is int else []


def disagreements(folder: Path, vocab_size: int) -> list[str]:
    """The contradictions between the files of a folder, one line each.

    No file is changed, and transformers is not loaded.
    """
    remarks = _wrong_ids(folder, vocab_size)
    end = None
    try:
        vocabulary = stored_vocabulary(folder)
        if vocabulary:
            files = TokenizerFolder(folder)
            remarks += _tokens_without_row(files, vocabulary, vocab_size)
            named = files.token("eos_token")
            end = None if named is None else vocabulary.get(named[0])
    except PrismError as problem:
        remarks.append(f"{problem}; the file is copied unchanged")
    ends = {
        name: numbers
        for name in (CONFIG, GENERATION_CONFIG)
        if (folder / name).is_file() and (numbers := _numbers(read_json(folder / name).get("eos_token_id")))
    }
    if end is not None:
        ends["the tokenizer"] = [end]
    if ends and not set.intersection(*(set(numbers) for numbers in ends.values())):
        listed = "; ".join(f"{name}: {', '.join(map(str, numbers))}" for name, numbers in ends.items())
        remarks.append(
            f"{folder}: the files have no end token in common (eos_token_id in {listed}); they are copied unchanged"
        )
    return remarks


def _tokens_without_row(files: TokenizerFolder, vocabulary: Mapping[str, int], vocab_size: int) -> list[str]:
    """Tokens without a row in the model's embedding, and named special tokens that have no id."""
    remarks = []
    token = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[token] >= vocab_size:
        remarks.append(
            f"{files.path}: token {token!r} of its tokenizer has the id {vocabulary[token]}, but the model has "
            f"vocab_size={vocab_size}; the model cannot read a text with this token"
        )
    unknown = [name for name in files.special_names() if name not in vocabulary]
    if unknown:
        remarks.append(
            f"{files.path}: its tokenizer files name the special token {unknown[0]!r}, which is not in "
            f"{files.vocabulary.name}; transformers gives it an id from {vocabulary[token] + 1} on, and the model has "
            f"vocab_size={vocab_size}"
        )
    return remarks


def _wrong_ids(folder: Path, vocab_size: int) -> list[str]:
    """Ids in the configs that are not ids of this model."""
    remarks = []
    for name in (CONFIG, GENERATION_CONFIG):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        for key in TOKEN_IDS:
            value = content.get(key)
            listed = value if isinstance(value, list) and key == "eos_token_id" else [value]
            if value is not None and not all(type(each) is int and each < vocab_size for each in listed):
                remarks.append(
                    f"{folder / name}: {key}={shown(value)} is not an id of this model (vocab_size={vocab_size}); it "
                    "is copied unchanged; correct it, or set it to null"
                )
    return remarks
