"""What a tokenizer folder says: its special tokens' ids and its vocabulary; and what two such folders have in common.

Two tokenizers are compared by what they do to text, not by how their files are written: programs of different age
write the same tokenizer in different words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.data.token_backends import SentencePieceBackend
from megatron_prism.data.tokenizer_files import TokenizerFolder, vocabulary_file
from megatron_prism.errors import ArtifactError, CheckpointError
from megatron_prism.models.model_folder import TOKENIZER_JSON, TOKENIZER_MODEL, read_json

# Any of these holds a vocabulary; the first that is there is read by transformers.
VOCABULARIES = (TOKENIZER_JSON, TOKENIZER_MODEL, "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
SPECIAL = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
    *("sep_token_id", "cls_token_id", "mask_token_id"),
)
# How texts are cut to a length and filled up says nothing of the vocabulary, and programs leave it in the file.
PASSING = ("truncation", "padding")
# Parts of a tokenizer.json that decide the ids of a text, in the order in which they act.
ENCODING = ("normalizer", "pre_tokenizer", "model")
# Many scripts, spaces, digits, code, contractions, composed and decomposed accents, and characters beyond 16 bits.
PROBE = (
    "The committee's 3 members didn't agree: 1234567 < 89,000.50%!  Two  spaces,\ttabs\r\n\n\nlines. HTTPServer "
    "camelCase snake_case def f(x):\n    return x**2 # \u00e9 e\u0301 \u00c5 \ufb01 \u00bd \u2460 \u212b stra\u00dfe "
    "I\u0307stanbul \u041c\u043e\u0441\u043a\u0432\u0430 \u03b5\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac "
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 \u4e2d\u6587\u5b57 "
    "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \U0001f600\u200d\U0001f525 \u00a0\u2003\u2014\u201c"
    "quoted\u201d <s> </s> <|endoftext|> [INST] aaaa ABC abc "
)


@dataclass(frozen=True)
class TokenizerFacts:
    """What transformers makes of a tokenizer folder.

    Attributes:
        ids: name of a special token's id (`eos_token_id` ...) -> the id; None where there is no such token.
        vocabulary: every token, added ones included -> its id.
    """

    ids: dict[str, int | None]
    vocabulary: dict[str, int]

    @property
    def largest(self) -> int:
        return max(self.vocabulary.values(), default=-1)


def has_tokenizer(folder: Path) -> bool:
    """Whether a vocabulary lies in the folder."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder; code beside it is not run.

    Raises:
        ArtifactError: when there is none, or transformers cannot load it.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; a folder with a tokenizer is needed")
    if not has_tokenizer(folder):
        raise ArtifactError(f"{folder}: no tokenizer; {' or '.join(VOCABULARIES[:2])} is needed")
    from transformers import AutoTokenizer
    from transformers.utils import logging as upstream

    verbosity = upstream.get_verbosity()
    upstream.set_verbosity(upstream.CRITICAL)
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as problem:  # its loaders raise whatever their parsers raise, bare Exceptions included
        first = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise ArtifactError(f"{folder}: its tokenizer cannot be loaded ({first})") from None
    finally:
        upstream.set_verbosity(verbosity)


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Read by transformers, whose classes have special tokens of their own where the files name none."""
    tokenizer = load_tokenizer(folder)
    ids = {key: getattr(tokenizer, key, None) for key in SPECIAL}
    return TokenizerFacts(ids, tokenizer.get_vocab())


def stored_vocabulary(folder: Path) -> dict[str, int] | None:
    """Token -> id as the files have it; None where there is neither a tokenizer.json nor a tokenizer.model.

    The tokens that added_tokens.json and tokenizer_config.json put beside the vocabulary are in it, too.

    Raises:
        CheckpointError, DataError: naming the file that cannot be read.
    """
    path = vocabulary_file(folder)
    if path is None:
        return None
    files = TokenizerFolder(folder)
    if path.name != TOKENIZER_JSON:
        return dict(SentencePieceBackend(files).vocabulary)
    vocabulary = token_ids(read_json(path), path)
    return vocabulary | _beside(files, vocabulary)


def _beside(files: TokenizerFolder, vocabulary: dict[str, int]) -> dict[str, int]:
    """Added tokens that a vocabulary does not have; one whose number is taken gets the next, as in transformers."""
    found: dict[str, int] = {}
    taken = set(vocabulary.values())
    for number, (token, _) in sorted(files.added_tokens().items()):
        if token not in vocabulary and token not in found:
            found[token] = number if number not in taken else max(taken) + 1
            taken.add(found[token])
    return found


def token_ids(tokenizer: dict[str, Any], path: Path) -> dict[str, int]:
    """Token -> id of the vocabulary and of the added tokens (a Unigram vocabulary is a list of [token, score])."""
    try:
        vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
        if isinstance(vocabulary, list):
            vocabulary = {entry[0]: place for place, entry in enumerate(vocabulary)}
        added = {each["content"]: each["id"] for each in tokenizer.get("added_tokens") or []}
        return {str(token): int(number) for token, number in {**vocabulary, **added}.items()}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as problem:
        raise CheckpointError(f"{path}: not a tokenizer.json ({problem!r})") from None


@dataclass(frozen=True)
class Comparison:
    """How a second tokenizer stands to a first.

    Attributes:
        conflict: a token that has two ids, or an id that means two tokens: rows of such models mean different things.
        choice: why one of the two must be chosen: tokens only one has, or a text that gets other ids.
        remark: what differs but changes no id.
    """

    conflict: str | None = None
    choice: str | None = None
    remark: str | None = None


def compare_tokenizers(first: Path, second: Path) -> Comparison:
    """Compare two folders that each hold a tokenizer (`has_tokenizer`)."""
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
    # A vocabulary is the same by now: a model that still differs has other merges or scores.
    if ids != other_ids or "model" in differing:
        return Comparison(choice=f"{theirs}: cuts text otherwise than {mine} (different: {names})")
    encoding = any(key in differing for key in ENCODING)
    how = "the ids of a probe text are the same" if encoding else "no id of a text depends on it"
    return Comparison(remark=f"{theirs}: {names} written otherwise than in {mine}; {how}")


def _compare_vocabularies(
    mine: dict[str, int] | None, theirs: dict[str, int] | None, first: Path, second: Path
) -> Comparison | None:
    """A conflict or a choice; None where both vocabularies are the same."""
    if mine is None or theirs is None or mine == theirs:
        return None
    tokens = {number: token for token, number in mine.items()}
    for token, number in theirs.items():
        known = mine.get(token)
        if known is not None and known != number:
            return Comparison(
                conflict=f"{second}: token {token!r} is number {number}, in {first} it is {known}"
            )
        if known is None and number in tokens:
            return Comparison(
                conflict=f"{second}: number {number} is token {token!r}, in {first} it is {tokens[number]!r}"
            )
    only = sorted(mine.keys() ^ theirs.keys(), key=lambda token: mine.get(token, theirs.get(token, 0)))
    owner = first if only[0] in mine else second
    return Comparison(choice=f"{owner}: has token {only[0]!r}, which the other tokenizer lacks")


def _backend(content: dict[str, Any], path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps({key: content[key] for key in content if key not in PASSING}))
    except Exception as problem:  # what the library raises is a bare Exception
        raise CheckpointError(f"{path}: not a tokenizer that can be read ({problem})") from None


def _meaning(backend: Any) -> dict[str, Any]:
    """The parts of a tokenizer as this library writes them: absent defaults filled in, one spelling of merges."""
    parts = json.loads(backend.to_str())
    found = {key: _plain(value) for key, value in parts.items() if key not in PASSING}
    found["added_tokens"] = sorted(parts.get("added_tokens") or [], key=lambda each: each["id"])
    return found


def _plain(part: Any) -> Any:
    """Without what changes no id: a sequence of one step, and where the offsets of a token begin."""
    if isinstance(part, dict):
        for steps in ("normalizers", "pretokenizers", "processors", "decoders"):
            if part.get("type") == "Sequence" and len(part.get(steps) or []) == 1:
                return _plain(part[steps][0])
        return {key: _plain(value) for key, value in part.items() if key != "trim_offsets"}
    if isinstance(part, list) and any(isinstance(each, dict) for each in part):
        return [_plain(each) for each in part]
    return part


def _compare_loaded(first: Path, second: Path) -> Comparison:
    """Folders of which one has no tokenizer.json: by file, or as transformers reads them."""
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
        return Comparison(choice=f"{second / other}: cuts text otherwise than {first / name}")
    return Comparison(
        remark=f"{second / other} and {first / name}: the same vocabulary, the same ids of a probe text"
    )
