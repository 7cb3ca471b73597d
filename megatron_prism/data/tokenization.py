"""Tokenizes documents into Megatron's `.bin`/`.idx` token files, with Megatron-Core's builder.

The files get their final names only when both are complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.readers import SPLITS, corpus_sources, read_texts
from megatron_prism.data.text_policy import SPELL_OUT, TextSettings
from megatron_prism.data.text_record import write_record
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import DataError
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger

DOCUMENTS_PER_BATCH = 256

log = get_logger(__name__)


@dataclass(frozen=True)
class TokenCount:
    """The contents of a `.bin` file.

    Attributes:
        documents: number of documents.
        tokens: number of tokens, including the start and end tokens of documents.
        with_special_names: number of documents that contain the name of a special token.
    """

    documents: int
    tokens: int
    with_special_names: int = 0


def write_tokens(texts: Iterable[str], tokenizer: Tokenizer, prefix: Path) -> TokenCount:
    """Write `PREFIX.bin` and `PREFIX.idx`, one document per text, with the start and end tokens of `tokenizer.policy`.

    Token ids have 2 bytes if the vocabulary allows it, otherwise 4.

    Raises:
        DataError: if there are no documents. After any error, no files are left.
    """
    import numpy
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    # If this is set explicitly, tokenizers does not warn when a data loader forks later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    final = {kind: prefix.with_name(f"{prefix.name}.{kind}") for kind in ("bin", "idx")}
    partial = {kind: path.with_name(f"{path.name}.partial") for kind, path in final.items()}
    dtype = DType.optimal_dtype(tokenizer.vocab_size)
    builder = IndexedDatasetBuilder(str(partial["bin"]), dtype=dtype)
    documents = tokens = odd = 0
    try:
        for batch in _batches(texts):
            odd += sum(bool(tokenizer.special_names(text)) for text in batch)
            for ids in tokenizer.encode_documents(batch):
                builder.add_document(numpy.array(ids, dtype=dtype), [len(ids)])
                documents += 1
                tokens += len(ids)
        if not documents:
            raise DataError(f"{final['bin']}: no documents to tokenize; check the corpus")
        builder.finalize(str(partial["idx"]))
        os.replace(partial["bin"], final["bin"])
        os.replace(partial["idx"], final["idx"])
    finally:
        builder.data_file.close()
        for path in partial.values():
            path.unlink(missing_ok=True)
    return TokenCount(documents, tokens, odd)


def tokenize_files(paths: Sequence[Path], tokenizer: Tokenizer, prefix: Path, text_key: str = "text") -> int:
    """Tokenize files or folders (see `readers.read_texts`) into one `PREFIX.bin/.idx`; returns the token count."""
    texts = (text for path in paths for text in read_texts(path, text_key))
    return write_tokens(texts, tokenizer, Path(prefix)).tokens


@dataclass
class TokenizeCorpus(Stage):
    """Inputs: `corpus`, `tokenizer`. Output: `train/` and `valid/` with a `.bin/.idx` per source, `sources.json` with
    their tokens, and `text.json` with the tokenizer and its policy.

    Attributes:
        text: start and end tokens of documents, and how names of special tokens in them are read.
    """

    kind: ClassVar[str] = "tokens"

    text: TextSettings = field(default_factory=TextSettings)

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        tokenizer = Tokenizer.load(inputs["tokenizer"].path, self.text)
        counts = {
            split: {
                source: write_tokens(read_texts(file), tokenizer, out / split / source)
                for source, file in corpus_sources(inputs["corpus"].path, split).items()
            }
            for split in SPLITS
        }
        tokens = {
            split: {name: count.tokens for name, count in made.items()} for split, made in counts.items()
        }
        write_json(out / "sources.json", tokens)
        write_record(out, tokenizer)
        train = counts["train"]
        with_names = {
            name: count.with_special_names for name, count in train.items() if count.with_special_names
        }
        if with_names and self.text.special_tokens == SPELL_OUT:
            log.warning(
                "documents that contain the name of a special token, which is read as ordinary text: %s; for rendered "
                "chat templates, set text.special_tokens=parse",
                ", ".join(f"{count} of {name}" for name, count in with_names.items()),
            )
        return {
            "tokens": tokens,
            "train_tokens": sum(count.tokens for count in train.values()),
            "tokens_per_document": {
                name: round(count.tokens / count.documents, 1) for name, count in train.items()
            },
            "with_special_names": with_names,
            "text": tokenizer.record(),
        }


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, DOCUMENTS_PER_BATCH)):
        yield batch
