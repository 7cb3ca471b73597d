"""The tokenizer of a folder: text to ids and back, by one policy (data/text_policy.py). Also the stages that make
tokenizers.

There are three kinds of text. A document gets a start token and an end token, a prompt gets a start token only, and a
fragment gets neither. The policy defines these tokens, and how names of special tokens in a text are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.readers import corpus_sources, read_texts
from megatron_prism.data.text_policy import PARSE, REFUSE, TextPolicy, TextSettings, text_policy
from megatron_prism.data.token_backends import Backend, names_pattern, open_backend
from megatron_prism.data.tokenizer_files import TokenizerFolder, copy_tokenizer, named_id
from megatron_prism.data.tokenizer_training import (
    BYTES,
    END_OF_TEXT,
    PAD,
    SPECIAL_TOKENS,
    train_byte_level_bpe,
)
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.models.model_folder import HF_FILES, TOKENIZER_CONFIG
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import LARGEST_COUNT, positive
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger

__all__ = ["END_OF_TEXT", "PAD", "ModelTokenizer", "Tokenizer", "TrainTokenizer", "train_tokenizer"]

# Text that tokenizers are known to split differently. Two tokenizers with the same vocabulary and the same ids for
# this text count as the same.
IDENTITY_PROBE = (
    "The quick brown fox's 1234567890 jumps, doesn't it?  Two  spaces\tand a tab.\r\n\n"
    "    def f(x_1): return x**2 != 3.14\nnaïve Straße ÉCOLE ﬁne №5 Ａ１ Привет мир 你好，世界 こんにちは "
    "안녕 مرحبا 👩\u200d👧 e\u0301 \u200b\u00a0end <b>&amp;</b> https://a.b/c?d=e"
)
EXCERPT = 60

log = get_logger(__name__)


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        policy: start and end tokens of a text, and how names of special tokens in it are read.
        eos_id: ends a completion, and every document unless the policy defines a different end.
        pad_id: the padding token; `eos_id` if the folder defines none.
        bos_id: the token that the folder calls its start token, also if no text gets it; `eos_id` if there is none.
        vocab_size: one more than the largest id.
    """

    def __init__(
        self, backend: Backend, eos_id: int, pad_id: int, policy: TextPolicy, *, bos_id: int | None = None
    ) -> None:
        self._backend = backend
        self.eos_id, self.pad_id, self.policy = eos_id, pad_id, policy
        self.bos_id = eos_id if bos_id is None else bos_id
        self.vocab_size = max(backend.vocabulary.values()) + 1
        # Unknown characters become the unknown token anyway, so its name needs no protection.
        self._special = {
            name: number
            for name, number in backend.special.items()
            if number != backend.unknown_id or number == eos_id
        }
        self._pattern = names_pattern(self._special) if self._special else None
        self._warned = False

    @classmethod
    def load(cls, folder: Path, text: TextSettings | None = None) -> Tokenizer:
        """Read a folder with a `tokenizer.json` or `tokenizer.model`.

        Args:
            text: the policy; None: that of the tokenizer's files.

        Raises:
            DataError: if a file is missing or damaged, or no end token is defined.
            ConfigError: if `text` names a token that does not exist.
        """
        files = TokenizerFolder(folder)
        backend = open_backend(files)
        eos_id = _end_id(files, backend)
        pad_id = named_id(files, "pad_token", backend.vocabulary.get)
        policy = text_policy(
            text or TextSettings(),
            before=backend.around[0],
            after=backend.around[1],
            eos_id=eos_id,
            find=backend.vocabulary.get,
            where=str(files.vocabulary),
        )
        begins = files.token("bos_token")
        bos_id = None if begins is None else backend.vocabulary.get(begins[0])
        return cls(backend, eos_id, eos_id if pad_id is None else pad_id, policy, bos_id=bos_id)

    @classmethod
    def load_for(cls, folder: Path, vocab_size: int, text: TextSettings | None = None) -> Tokenizer:
        """`load`, and check that a model with this many vocabulary rows has a row for every token.

        Raises:
            ConfigError: if the tokenizer has more tokens.
        """
        tokenizer = cls.load(folder, text)
        if tokenizer.vocab_size > vocab_size:
            raise ConfigError(
                f"architecture.vocab_size={vocab_size}, but the tokenizer {folder} has {tokenizer.vocab_size}; use the "
                "tokenizer of the model"
            )
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt: the policy's start token, then the text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many prompts. Warns the first time that the name of a special token is read as ordinary text."""
        if not self._warned and self.policy.special_tokens not in (PARSE, REFUSE):
            first_names = next((names for text in texts if (names := self.special_names(text))), None)
            if first_names:
                self._warned = True
                log.warning(
                    "a prompt contains the name of a special token, '%s', and it is read as ordinary text; if prompts "
                    "are rendered chat templates, set text.special_tokens=parse",
                    first_names[0],
                )
        return [self.policy.prompt(ids) for ids in self.encode_fragments(texts)]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole documents: the policy's start token, the text, the policy's end token."""
        return [self.policy.document(ids) for ids in self.encode_fragments(texts)]

    def encode_fragment(self, text: str) -> list[int]:
        """Token ids of `text`, without start and end tokens."""
        return self.encode_fragments([text])[0]

    def encode_fragments(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_fragment` for many texts.

        Raises:
            DataError: for a text with the name of a special token, if the policy refuses these.
        """
        parse = self.policy.special_tokens == PARSE
        if self.policy.special_tokens == REFUSE:
            for text in texts:
                self._refuse(text)
        rows = self._backend.encode(texts, parse)
        if parse or self._pattern is None:
            return rows
        return [
            self._spelled_out(ids, names) if (names := self.special_names(text)) else ids
            for text, ids in zip(texts, rows, strict=True)
        ]

    def special_names(self, text: str) -> list[str]:
        """The distinct names of special tokens in a text."""
        return list(dict.fromkeys(self._pattern.findall(text))) if self._pattern else []

    def without_special_names(self, text: str) -> str:
        """The text without the names of special tokens."""
        return self._pattern.sub("", text) if self._pattern else text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids. Special tokens appear as their names."""
        return self._backend.decode([ids])[0]

    def decode_each(self, ids: Iterable[int]) -> list[str]:
        """The text of each single token. Part of a character becomes the replacement character."""
        return self._backend.decode([[each] for each in ids])

    @cached_property
    def identity(self) -> str:
        """A hash that is the same for two folders whose tokenizers give the same ids, even if their files differ."""
        vocabulary = sorted((number, name) for name, number in self._backend.vocabulary.items())
        [probe] = self._backend.encode([IDENTITY_PROBE], False)
        content = json.dumps([vocabulary, probe, self.eos_id])
        return hashlib.sha256(content.encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """The tokenizer and its policy, for receipts and for the folders of token files."""
        return {
            "tokenizer": self.identity,
            "begin": [self.decode([number]) for number in self.policy.begin],
            "end": [self.decode([number]) for number in self.policy.end],
            "special_tokens": self.policy.special_tokens,
        }

    def _refuse(self, text: str) -> None:
        if names := self.special_names(text):
            place = text.index(names[0])
            shown = text[max(0, place - EXCERPT // 2) : place + EXCERPT // 2]
            raise DataError(
                f"text {shown!r} contains the name of the special token '{names[0]}', and text.special_tokens=refuse; "
                "remove it from the text, or set text.special_tokens to spell_out or parse"
            )

    def _spelled_out(self, ids: list[int], names: Sequence[str]) -> list[int]:
        """Replace special tokens in `ids` by their characters: some vocabularies form them by merging characters."""
        bad = {self._special[name]: name for name in names}
        if bad.keys().isdisjoint(ids):
            return ids
        spelled = {number: self._characters(name) for number, name in bad.items()}
        return [each for number in ids for each in spelled.get(number, (number,))]

    def _characters(self, name: str) -> list[int]:
        """The ids of a name, one token per character."""
        vocabulary, found = self._backend.vocabulary, list[int]()
        for character in name:
            own = vocabulary.get(character)
            found += self._backend.encode([character], False)[0] if own is None else [own]
        return found


def _end_id(files: TokenizerFolder, backend: Backend) -> int:
    """The id of the token that ends a document and a completion."""
    eos_id = named_id(files, "eos_token", backend.vocabulary.get)
    if eos_id is None:
        eos_id = backend.ends
    if eos_id is None and (stated := files.token_id("eos_token_id")) is not None:
        eos_id, file = stated
        if eos_id not in backend.vocabulary.values():
            raise DataError(
                f"{file}: eos_token_id={eos_id} is not in {files.vocabulary.name}; use one of its ids"
            )
    if eos_id is None:
        raise DataError(
            f"{files.path / TOKENIZER_CONFIG}: no eos_token, and no eos_token_id in generation_config.json or "
            "config.json in the same folder, so documents have no end token; add one of these keys"
        )
    return eos_id


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` tokens, into a folder that transformers can read.

    Raises:
        DataError: if the texts are too few for this many tokens.
    """
    train_byte_level_bpe(texts, vocab_size, folder)
    return Tokenizer.load(folder)


# A petabyte.
MOST_BYTES = 10**15


@dataclass
class TrainTokenizer(Stage):
    """Input: `corpus`. Output: a tokenizer folder.

    Attributes:
        max_bytes_per_source: limit for each source, so that a large source does not dominate the vocabulary.
        source_weights: source -> factor of this limit; 0 leaves the source out.
    """

    kind: ClassVar[str] = "tokenizer"

    vocab_size: int = 2048
    max_bytes_per_source: int = 750_000
    source_weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        positive(self, "max_bytes_per_source", most=MOST_BYTES)
        positive(self, "vocab_size")
        smallest = BYTES + len(SPECIAL_TOKENS)
        if self.vocab_size < smallest:
            raise ConfigError(
                f"vocab_size={self.vocab_size}: must be at least {smallest}, for every byte and the special tokens"
            )
        for source, weight in (self.source_weights or {}).items():
            if not 0 <= weight <= LARGEST_COUNT:
                raise ConfigError(
                    f"source_weights.{source}={weight}: must be a number from 0 to {LARGEST_COUNT}"
                )

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        files = corpus_sources(inputs["corpus"].path, "train")
        weights = self.source_weights or {}
        for source in weights:
            if source not in files:
                raise ConfigError(
                    f"source_weights.{source}: the corpus has no such source; it has {', '.join(files)}"
                )
        limits = {source: int(self.max_bytes_per_source * weights.get(source, 1.0)) for source in files}
        used: dict[str, int] = {}
        texts = chain.from_iterable(
            _first_bytes(files[source], source, limit, used) for source, limit in limits.items() if limit
        )
        tokenizer = train_tokenizer(texts, self.vocab_size, out)
        return {"vocab_size": tokenizer.vocab_size, "bytes": used, "text": tokenizer.record()}


@dataclass
class ModelTokenizer(Stage):
    """Input: `model`, an import artifact. Output: the tokenizer folder that came with the model."""

    kind: ClassVar[str] = "tokenizer"

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        copy_tokenizer(inputs["model"].file(HF_FILES), out)
        tokenizer = Tokenizer.load(out)
        return {"vocab_size": tokenizer.vocab_size, "text": tokenizer.record()}


def _first_bytes(file: Path, source: str, limit: int, used: dict[str, int]) -> Iterator[str]:
    """Whole documents until `limit` bytes are reached; stores the number of bytes in `used[source]`."""
    used[source] = 0
    for text in read_texts(file):
        used[source] += len(text.encode("utf-8"))
        yield text
        if used[source] >= limit:
            return
