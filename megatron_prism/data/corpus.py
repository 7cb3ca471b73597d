"""The `corpus` stage for the user's files, and functions that write and split any corpus folder.

A corpus folder contains `train/SOURCE.jsonl.zst` and `valid/SOURCE.jsonl.zst`, one JSON object with a `text` per line;
`readers.corpus_sources` finds them. The split of a document depends only on its text, so copies of a document are never
in both splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.data.readers import CORPUS_SUFFIX, SPLITS, Blank, read_texts, source_files
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.json_lines import record_writer
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger

TRAIN, VALID = SPLITS
logger = get_logger(__name__)


@dataclass
class FileCorpus(Stage):
    """No inputs. Output: a corpus folder made from the user's files.

    Attributes:
        sources: name -> a file or folder of text, JSON lines (.gz, .zst) or Parquet.
        text_key: the key or column with the text.
        valid_percent: share of the documents that is held out for the validation loss.
    """

    kind: ClassVar[str] = "corpus"
    # 2: blank texts are not documents, and a byte order mark before plain text is not part of the text.
    version: ClassVar[int] = 2

    sources: dict[str, str] = field(default_factory=dict)
    text_key: str = "text"
    valid_percent: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.valid_percent < 100:
            raise ConfigError(f"valid_percent={self.valid_percent}: must be between 0 and 100")
        for name in self.sources:
            if not name or not all(character.isalnum() or character in "-_" for character in name):
                raise ConfigError(
                    f"sources: '{name}' is used in file names, so it may contain only letters, digits, '-' and '_'"
                )

    def identity(self) -> dict[str, Any]:
        """Includes the size and modification time of every file, because a changed file gives a different corpus."""
        stamps = {
            name: [
                [str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in source_files(Path(path))
            ]
            for name, path in self.sources.items()
        }
        return super().identity() | {"files": stamps}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        if not self.sources:
            raise ConfigError("sources: empty; name at least one, for example sources.web=texts.jsonl")
        written: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
        blanks: dict[str, int] = {}
        for name, path in self.sources.items():
            blank = Blank()
            with ExitStack() as stack:
                writers = {split: stack.enter_context(source_writer(out, split, name)) for split in SPLITS}
                for text in read_texts(Path(path), self.text_key, blank):
                    writers[split_of(text, self.valid_percent)].write(text)
            for split, writer in writers.items():
                if not writer.documents:
                    raise DataError(
                        f"{path}: none of its {sum(w.documents for w in writers.values())} documents is in "
                        f"'{split}' with valid_percent={self.valid_percent}; use more documents (a text file is "
                        "one document) or change the percentage"
                    )
                written[split][name] = writer.counts()
            if blank.documents:
                blanks[name] = blank.documents
                logger.warning("%s: %d blank texts were skipped", path, blank.documents)
        return {"sources": written, "blank_documents": blanks}


class SourceWriter:
    """Writes one source's documents and counts them."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None]) -> None:
        self._write = write
        self.documents = self.characters = 0

    def write(self, text: str) -> None:
        self._write({"text": text})
        self.documents += 1
        self.characters += len(text)

    def counts(self) -> dict[str, int]:
        return {"documents": self.documents, "characters": self.characters}


@contextmanager
def source_writer(corpus: Path, split: str, source: str) -> Iterator[SourceWriter]:
    """Open `CORPUS/SPLIT/SOURCE.jsonl.zst` for writing."""
    with record_writer(corpus / split / f"{source}{CORPUS_SUFFIX}", "utf-8") as write:
        yield SourceWriter(write)


def split_of(text: str, valid_percent: float) -> str:
    """'train' or 'valid', by a hash of the text: about `valid_percent` of all texts are for validation."""
    number = int(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8], 16)
    return VALID if number < valid_percent / 100 * 2**32 else TRAIN


def split_texts(texts: Iterable[str], valid_percent: float) -> dict[str, list[str]]:
    """Texts by split, in their original order."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text in texts:
        found[split_of(text, valid_percent)].append(text)
    return found
