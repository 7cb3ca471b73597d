"""Documents to Megatron's `.bin`/`.idx` token files, through Megatron-Core's own builder.

The files appear under their final names only when both are complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.readers import SPLITS, corpus_sources, read_texts
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import DataError
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.stage import Stage

DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True)
class TokenCount:
    """What a `.bin` holds: documents, and tokens with each document's end-of-text token."""

    documents: int
    tokens: int


def write_tokens(texts: Iterable[str], tokenizer: Tokenizer, prefix: Path) -> TokenCount:
    """Write `PREFIX.bin` and `PREFIX.idx`, one document per text, each ended by `tokenizer.eos_id`.

    Token ids are 2 bytes wide where the vocabulary allows it, else 4.

    Raises:
        DataError: when there is not one document; nothing is left behind then, or after any other error.
    """
    import numpy
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    # Said explicitly, tokenizers stays silent when a data loader forks later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    final = {kind: prefix.with_name(f"{prefix.name}.{kind}") for kind in ("bin", "idx")}
    partial = {kind: path.with_name(f"{path.name}.partial") for kind, path in final.items()}
    dtype = DType.optimal_dtype(tokenizer.vocab_size)
    builder = IndexedDatasetBuilder(str(partial["bin"]), dtype=dtype)
    documents = tokens = 0
    try:
        for batch in _batches(texts):
            for ids in tokenizer.encode_batch(batch):
                ids.append(tokenizer.eos_id)
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
    return TokenCount(documents, tokens)


def tokenize_files(paths: Sequence[Path], tokenizer: Tokenizer, prefix: Path, text_key: str = "text") -> int:
    """Tokenize files or folders (see `readers.read_texts`) into one `PREFIX.bin/.idx`; returns the token count."""
    texts = (text for path in paths for text in read_texts(path, text_key))
    return write_tokens(texts, tokenizer, Path(prefix)).tokens


@dataclass
class TokenizeCorpus(Stage):
    """Inputs: `corpus`, `tokenizer`. Output: `train/` and `valid/` with a `.bin/.idx` per source, `sources.json`."""

    kind: ClassVar[str] = "tokens"

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        tokenizer = Tokenizer.load(inputs["tokenizer"].path)
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
        train = counts["train"]
        return {
            "tokens": tokens,
            "train_tokens": sum(count.tokens for count in train.values()),
            "tokens_per_document": {
                name: round(count.tokens / count.documents, 1) for name, count in train.items()
            },
        }


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, DOCUMENTS_PER_BATCH)):
        yield batch
