"""Token ids in config.json and generation_config.json, kept in agreement with the tokenizer that lies beside them."""

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
# Further keys of generation_config.json that name ids: they fit one vocabulary only.
NAMING_IDS = (
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens"),
    *("begin_suppress_tokens", "bad_words_ids", "force_words_ids", "sequence_bias"),
)


def check_fits(facts: TokenizerFacts, vocab_size: int, folder: Path) -> None:
    """Raise an ArtifactError when a tokenizer has a token without a row in the model's embedding."""
    if facts.largest >= vocab_size:
        token = next(token for token, number in facts.vocabulary.items() if number == facts.largest)
        raise ArtifactError(
            f"{folder}: token {token!r} is number {facts.largest}, but the model has vocab_size={vocab_size}; name the "
            "tokenizer that the model was trained with"
        )


def follow_tokenizer(folder: Path, facts: TokenizerFacts, before: Mapping[str, int] | None) -> list[str]:
    """Change the ids in `folder` that the new tokenizer contradicts.

    An id, or a list of ids, stays where its tokens mean the same in both tokenizers and the new tokenizer's own id is
    among them: a chat model's list of end tokens outlives a change of template. In config.json an id that is no longer
    one becomes null, for an absent key is filled in by transformers.

    Args:
        facts: of the tokenizer that lies in the folder now.
        before: token -> id of the one that came with the model; None where that is not known.

    Returns:
        One line for each key that changed.
    """
    said = []
    for name in (CONFIG, GENERATION_CONFIG):
        path = folder / name
        if not path.is_file():
            continue
        content = read_json(path)
        changed = _changed(content, facts, before, name == GENERATION_CONFIG)
        for key in changed:
            said.append(
                f"{name}: {key} {_shown(content, key)} becomes {_shown(changed, key)}, as the tokenizer says"
            )
        if changed:
            write_json(path, content | changed)
    return said


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
            # To generation_config.json an absent key is no token, to config.json the default of the model's class.
            stated = key in content or (key in TOKEN_IDS and not generation)
            if stated and own is not None:
                found[key] = own
            continue
        numbers = _numbers(value)
        kept = bool(numbers) and all(map(same, numbers)) and (own is None or own in numbers)
        if not kept and value != own:
            found[key] = own
    if generation and before != facts.vocabulary:
        for key in NAMING_IDS:
            value = content.get(key)
            if value is not None and not (_numbers(value) and all(map(same, _numbers(value)))):
                found[key] = None
    return found


def _shown(content: Mapping[str, Any], key: str) -> str:
    return json.dumps(content[key]) if key in content else "(absent)"


def _numbers(value: Any) -> list[Any]:
    """The ids in a value: a number, or lists of numbers; nothing where it is something else."""
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if type(value) is int else []


def disagreements(folder: Path, vocab_size: int) -> list[str]:
    """What the files of a folder say differently, one line each; nothing is changed. transformers is not loaded."""
    said = _wrong_ids(folder, vocab_size)
    end = None
    try:
        vocabulary = stored_vocabulary(folder)
        if vocabulary:
            files = TokenizerFolder(folder)
            said += _beyond(files, vocabulary, vocab_size)
            named = files.token("eos_token")
            end = None if named is None else vocabulary.get(named[0])
    except PrismError as problem:
        said.append(f"{problem}; carried as it came")
    ends = {
        name: numbers
        for name in (CONFIG, GENERATION_CONFIG)
        if (folder / name).is_file() and (numbers := _numbers(read_json(folder / name).get("eos_token_id")))
    }
    if end is not None:
        ends["the tokenizer"] = [end]
    if ends and not set.intersection(*(set(numbers) for numbers in ends.values())):
        listed = "; ".join(f"{name}: {', '.join(map(str, numbers))}" for name, numbers in ends.items())
        said.append(
            f"{folder}: no end token is common to all (eos_token_id in {listed}); carried as they came"
        )
    return said


def _beyond(files: TokenizerFolder, vocabulary: Mapping[str, int], vocab_size: int) -> list[str]:
    """Tokens without a row in the model, and special tokens that are named and have no number."""
    said = []
    token = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[token] >= vocab_size:
        said.append(
            f"{files.path}: its tokenizer has token {token!r} with number {vocabulary[token]}, the model has "
            f"vocab_size={vocab_size}: a text with it cannot be read"
        )
    unknown = [name for name in files.special_names() if name not in vocabulary]
    if unknown:
        said.append(
            f"{files.path}: its tokenizer files name the special token {unknown[0]!r}, which is not in "
            f"{files.vocabulary.name}: transformers numbers it from {vocabulary[token] + 1} on, the model has "
            f"vocab_size={vocab_size}"
        )
    return said


def _wrong_ids(folder: Path, vocab_size: int) -> list[str]:
    """Ids in the configs that are no number of a token of this model."""
    said = []
    for name in (CONFIG, GENERATION_CONFIG):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        for key in TOKEN_IDS:
            value = content.get(key)
            listed = value if isinstance(value, list) and key == "eos_token_id" else [value]
            if value is not None and not all(type(each) is int and each < vocab_size for each in listed):
                said.append(
                    f"{folder / name}: {key}={shown(value)} is not a token of this model (vocab_size={vocab_size}); "
                    "carried as it came: mend it, or set it to null"
                )
    return said
