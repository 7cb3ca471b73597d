"""The tokenizer: train a byte-level BPE, or load any Hugging Face folder with a `tokenizer.json`.

The trained one splits numbers into single digits and spells any byte, so every text survives a round trip. A special
token's name inside a text is ordinary text: documents cannot end themselves early.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.readers import corpus_sources, read_texts
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.models.hf_config import TOKENIZER_FILES
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import positive
from megatron_prism.pipeline.json_text import read_json, read_text
from megatron_prism.pipeline.stage import Stage

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD)
BYTES = 256
# How text is cut before merging: Qwen2's pattern (its tokenizer.json), where each digit stands alone.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        eos_id: ends every document.
        pad_id: the padding token; `eos_id` where the folder names none.
        vocab_size: one more than the largest id.
    """

    def __init__(self, backend: Any, eos_id: int, pad_id: int) -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True
        self.eos_id, self.pad_id = eos_id, pad_id
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json`, and the end and padding tokens from `tokenizer_config.json`.

        Raises:
            DataError: when a file is missing or damaged, or no end-of-text token is named.
        """
        from tokenizers import Tokenizer as Backend

        file, config_file = Path(folder) / "tokenizer.json", Path(folder) / "tokenizer_config.json"
        for needed in (file, config_file):
            if not needed.is_file():
                raise DataError(
                    f"{needed}: missing; a tokenizer folder needs tokenizer.json and tokenizer_config.json"
                )
        try:
            backend = Backend.from_str(read_text(file))
        except DataError:
            raise
        except Exception as problem:  # tokenizers raises bare Exception for whatever it cannot parse
            raise DataError(f"{file}: not a tokenizer ({str(problem).splitlines()[0]})") from None
        config = read_json(config_file)
        eos_id = _special_id(backend, config, "eos_token", config_file)
        if eos_id is None:
            raise DataError(f"{config_file}: no eos_token, so documents cannot be ended; add one")
        pad_id = _special_id(backend, config, "pad_token", config_file)
        return cls(backend, eos_id, eos_id if pad_id is None else pad_id)

    @classmethod
    def load_for(cls, folder: Path, vocab_size: int) -> Tokenizer:
        """`load`, for a model of that many rows.

        Raises:
            ConfigError: if the tokenizer has more tokens.
        """
        tokenizer = cls.load(folder)
        if tokenizer.vocab_size > vocab_size:
            raise ConfigError(
                f"architecture.vocab_size={vocab_size}, but the tokenizer {folder} has {tokenizer.vocab_size}: use the "
                "tokenizer of the model"
            )
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; nothing is added before or after."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all cores unless TOKENIZERS_PARALLELISM=false."""
        return [item.ids for item in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens show as their names."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    def decode_each(self, ids: Iterable[int]) -> list[str]:
        """The text of each token by itself; a part of a character is the replacement character."""
        texts: list[str] = self._backend.decode_batch([[each] for each in ids], skip_special_tokens=False)
        return texts


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` tokens and write the two files transformers' AutoTokenizer reads.

    Raises:
        DataError: when the texts are too few for that many tokens.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise DataError(
            f"the corpus yields only {backend.get_vocab_size()} tokens, vocab_size={vocab_size} was asked for: "
            "lower it or give more text"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
        },
    )
    return Tokenizer.load(folder)


@dataclass
class TrainTokenizer(Stage):
    """Input: `corpus`. Output: a tokenizer folder.

    Attributes:
        max_bytes_per_source: how much of each source is read, so that a large one does not own the vocabulary.
        source_weights: multiplies that limit for the sources named; 0 leaves one out.
    """

    kind: ClassVar[str] = "tokenizer"

    vocab_size: int = 2048
    max_bytes_per_source: int = 750_000
    source_weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        positive(self, "max_bytes_per_source")
        smallest = BYTES + len(SPECIAL_TOKENS)
        if self.vocab_size < smallest:
            raise ConfigError(
                f"vocab_size={self.vocab_size}: at least {smallest}, for every byte and the special tokens"
            )
        for source, weight in (self.source_weights or {}).items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"source_weights.{source}={weight}: must be 0 or more")

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
        return {"vocab_size": tokenizer.vocab_size, "bytes": used}


@dataclass
class ModelTokenizer(Stage):
    """Input: `model`, an import artifact. Output: the tokenizer folder that came with the model."""

    kind: ClassVar[str] = "tokenizer"

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        files = inputs["model"].file("hf")
        for name in TOKENIZER_FILES:
            if (files / name).is_file():
                shutil.copyfile(files / name, out / name)
        return {"vocab_size": Tokenizer.load(out).vocab_size}


def _first_bytes(file: Path, source: str, limit: int, used: dict[str, int]) -> Iterator[str]:
    """Whole documents until `limit` bytes are reached; how many were used goes into `used[source]`."""
    used[source] = 0
    for text in read_texts(file):
        used[source] += len(text.encode("utf-8"))
        yield text
        if used[source] >= limit:
            return


def _special_id(backend: Any, config: Any, key: str, file: Path) -> int | None:
    token = config.get(key) if isinstance(config, dict) else None
    content = token.get("content") if isinstance(token, dict) else token
    if not content:
        return None
    found: int | None = backend.token_to_id(content)
    if found is None:
        raise DataError(f"{file}: {key} '{content}' is not in tokenizer.json")
    return found
