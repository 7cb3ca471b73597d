"""The special token ids and the vocabulary of a tokenizer folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.data.token_backends import SentencePieceBackend
from megatron_prism.data.tokenizer_files import TokenizerFolder, vocabulary_file
from megatron_prism.errors import ArtifactError, CheckpointError
from megatron_prism.models.model_folder import TOKENIZER_JSON, TOKENIZER_MODEL, read_json

# Each of these holds a vocabulary; transformers reads the first that exists.
VOCABULARIES = (TOKENIZER_JSON, TOKENIZER_MODEL, "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
SPECIAL = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
    *("sep_token_id", "cls_token_id", "mask_token_id"),
)


@dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer folder as transformers reads it.

    Attributes:
        ids: name of a special token's id (`eos_token_id` ...) -> the id; None if there is no such token.
        vocabulary: token -> id, including added tokens.
    """

    ids: dict[str, int | None]
    vocabulary: dict[str, int]

    @property
    def largest(self) -> int:
        return max(self.vocabulary.values(), default=-1)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, loaded by transformers without running code from the folder.

    Raises:
        ArtifactError: if there is none, or transformers cannot load it.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; name a folder with a tokenizer")
    if not has_tokenizer(folder):
        raise ArtifactError(f"{folder}: no tokenizer (neither {' nor '.join(VOCABULARIES[:2])})")
    from transformers import AutoTokenizer
    from transformers.utils import logging as upstream

    verbosity = upstream.get_verbosity()
    upstream.set_verbosity(upstream.CRITICAL)
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as problem:  # its parsers raise any exception, even bare Exceptions
        first = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise ArtifactError(f"{folder}: its tokenizer cannot be loaded ({first})") from None
    finally:
        upstream.set_verbosity(verbosity)


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Read by transformers, because its classes have default special tokens that the files do not name."""
    tokenizer = load_tokenizer(folder)
    ids = {key: getattr(tokenizer, key, None) for key in SPECIAL}
    return TokenizerFacts(ids, tokenizer.get_vocab())


def stored_vocabulary(folder: Path) -> dict[str, int] | None:
    """Token -> id, read from the files. None if there is neither a tokenizer.json nor a tokenizer.model.

    The tokens that added_tokens.json and tokenizer_config.json add to the vocabulary are included.

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
    return vocabulary | _missing_added_tokens(files, vocabulary)


def _missing_added_tokens(files: TokenizerFolder, vocabulary: dict[str, int]) -> dict[str, int]:
    """Added tokens that are not in the vocabulary.

    If its id is taken, a token gets the next one, as in transformers.
    """
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
