"""The `packed` stage: selects documents by length and packs whole documents into sequences, source by source.

The tokens are copied. An index into the original files would be smaller, but an artifact must not depend on other
files, which could be moved or removed. Training also reads a copied sequence in one piece; with an index it would have
to read from as many places as the sequence has documents. The copy has Megatron's format, so other tools can read it: a
packed sequence is a Megatron document, and a chunk is a Megatron sequence.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_prism.data.mixture import check_sources
from megatron_prism.data.packed_dataset import PACKING
from megatron_prism.data.readers import SPLITS
from megatron_prism.data.text_record import RECORD
from megatron_prism.data.token_files import TokenFile, token_sources
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.pipeline.artifact import Artifact, write_json
from megatron_prism.pipeline.config import LARGEST_COUNT, positive, to_mapping
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger, track

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

    from megatron_prism.data.long_documents import Chunks

logger = get_logger(__name__)
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
# A document of one token is only its end token.
MIN_DOCUMENT = 2


@dataclass
class PackDocuments(Stage):
    """Input: `tokens`, a TokenizeCorpus artifact. Output: `train/` and `valid/` with packed sequences per source.

    Lengths are in tokens and include a document's end token.

    Attributes:
        sequence_length: inputs of a training sample; a packed sequence has one token more, the last label.
        min_tokens: documents shorter than this are dropped.
        source_min_tokens: source -> a threshold that replaces `min_tokens`.
        split_long: split documents longer than a sequence into chunks; otherwise they are dropped.
        overlap: number of tokens that neighbouring chunks of a document share.
        sources: the sources to pack; empty: all.
    """

    kind: ClassVar[str] = "packed"

    sequence_length: int
    min_tokens: int = MIN_DOCUMENT
    source_min_tokens: dict[str, int] = field(default_factory=dict)
    split_long: bool = True
    overlap: int = 0
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        positive(self, "sequence_length")
        if not 0 <= self.overlap < self.sequence_length:
            raise ConfigError(
                f"overlap={self.overlap}: must be 0 or more and less than sequence_length={self.sequence_length}"
            )
        thresholds = {f"source_min_tokens.{name}": value for name, value in self.source_min_tokens.items()}
        for key, value in {"min_tokens": self.min_tokens, **thresholds}.items():
            if not MIN_DOCUMENT <= value <= LARGEST_COUNT:
                raise ConfigError(
                    f"{key}={value}: must be {MIN_DOCUMENT} or more, a token and the end token, and below 2^31"
                )
            if value > self.sequence_length and not self.split_long:
                raise ConfigError(
                    f"{key}={value} is more than sequence_length={self.sequence_length}, and split_long=false drops "
                    "longer documents, so no document would be left; lower it, or set split_long=true"
                )

    @property
    def capacity(self) -> int:
        """Tokens of a packed sequence: `sequence_length` inputs, and the label of the last one."""
        return self.sequence_length + 1

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        tokens = inputs["tokens"].path
        ledger: dict[str, dict[str, dict[str, Any]]] = {}
        for split in SPLITS:
            prefixes = token_sources(tokens, split)
            for named in (self.sources, self.source_min_tokens):
                check_sources(dict.fromkeys(named, 1.0), prefixes, str(tokens / split))
            ledger[split] = {
                source: self._pack(split, source, prefixes[source], out)
                for source in self.sources or list(prefixes)
            }
        write_json(out / PACKING, to_mapping(self) | {"ledger": ledger})
        if (tokens / RECORD).is_file():
            shutil.copyfile(tokens / RECORD, out / RECORD)
        return {
            "ledger": ledger,
            "tokens": {
                split: {name: row["tokens"] for name, row in rows.items()} for split, rows in ledger.items()
            },
            "train_tokens": sum(row["tokens"] for row in ledger["train"].values()),
            "train_sequences": sum(row["sequences"] for row in ledger["train"].values()),
            "padding_share": {split: self._padding_share(*rows.values()) for split, rows in ledger.items()},
        }

    def _pack(self, split: str, source: str, prefix: Path, out: Path) -> dict[str, Any]:
        """Pack one source of one split; returns its row of the ledger."""
        from megatron_prism.data.best_fit import best_fit_decreasing
        from megatron_prism.data.long_documents import cut, select

        file = TokenFile.open(prefix)
        lengths = file.lengths
        threshold = self.source_min_tokens.get(source, self.min_tokens)
        chosen = select(lengths, threshold, self.capacity, self.split_long)
        if not len(chosen.kept):
            raise DataError(
                self._nothing_left(
                    prefix, split=split, source=source, threshold=threshold, longest=int(lengths.max())
                )
            )
        chunks = cut(chosen.kept, lengths[chosen.kept], self.capacity, self.overlap)
        buffers = best_fit_decreasing(chunks.length, self.capacity)
        sequences = int(buffers.max()) + 1
        (out / split).mkdir(parents=True, exist_ok=True)
        _write(file, chunks, buffers, prefix=out / split / source, label=f"packing {split}/{source}")
        kept_tokens = int(lengths[chosen.kept].sum()) - chunks.dropped_tokens
        written = int(chunks.length.sum())
        row = {
            "documents": len(lengths),
            "kept": len(chosen.kept),
            "dropped_short": chosen.dropped_short,
            "dropped_long": chosen.dropped_long,
            "split": int((lengths[chosen.kept] > self.capacity).sum()),
            "min_tokens": threshold,
            "chunks": len(chunks.length),
            "sequences": sequences,
            "tokens": written,
            "tokens_dropped": chosen.dropped_tokens + chunks.dropped_tokens,
            "tokens_repeated": written - kept_tokens,
            "lengths": _quantiles(lengths),
            "lengths_kept": _quantiles(lengths[chosen.kept]),
        }
        row["padding_share"] = self._padding_share(row)
        logger.info(
            f"packed {split}/{source}: {row['kept']:,} of {row['documents']:,} documents ({threshold:,} tokens or "
            f"more), {written:,} tokens in {sequences:,} sequences of {self.sequence_length:,}, "
            f"padding {row['padding_share']:.2%}"
        )
        return row

    def _padding_share(self, *rows: Mapping[str, Any]) -> float:
        """Share of the sequences' positions that hold no token."""
        positions = self.capacity * sum(row["sequences"] for row in rows)
        return 1 - sum(row["tokens"] for row in rows) / positions

    def _nothing_left(self, prefix: Path, *, split: str, source: str, threshold: int, longest: int) -> str:
        if longest < threshold:
            why = (
                f"min_tokens={threshold}, because its longest document has {longest} tokens; lower min_tokens"
            )
        else:
            why = (
                f"min_tokens={threshold} with split_long=false and sequence_length={self.sequence_length} (its longest "
                f"document has {longest} tokens); lower min_tokens, set split_long=true"
            )
        remedy = f"{why} (or source_min_tokens.{source}), or leave the source out with `sources`"
        return f"{prefix}: no document of source '{source}' ({split}) is left with {remedy}"


def _write(file: TokenFile, chunks: Chunks, buffers: NDArray[int64], *, prefix: Path, label: str) -> None:
    """Copy the chunks of each buffer into one document of `PREFIX.bin`, the longest first."""
    import numpy
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    # By buffer, then in the order of placement: the longest first, equal lengths in their original order.
    order = numpy.lexsort((-chunks.length, buffers))
    begins = (file.bounds[chunks.document] + chunks.start)[order]
    lengths = chunks.length[order]
    firsts = numpy.flatnonzero(numpy.diff(buffers[order], prepend=-1))
    lasts = numpy.append(firsts[1:], len(order))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=file.tokens.dtype.type)
    try:
        for first, last in track(zip(firsts, lasts, strict=True), label, total=len(firsts)):
            pieces = [
                file.tokens[begin : begin + length]
                for begin, length in zip(
                    begins[first:last].tolist(), lengths[first:last].tolist(), strict=True
                )
            ]
            builder.add_document(numpy.concatenate(pieces), lengths[first:last].tolist())
        builder.finalize(f"{prefix}.idx")
    finally:
        builder.data_file.close()


def _quantiles(lengths: NDArray[int64]) -> dict[str, int]:
    """The lengths at `QUANTILES`; each is the length of an existing document."""
    import numpy

    values = numpy.quantile(lengths, QUANTILES, method="inverted_cdf")
    return {f"{share:.0%}": int(value) for share, value in zip(QUANTILES, values, strict=True)}
