"""Megatron's `.bin`/`.idx` token files: finding them, checking that they are whole, reading documents out of them.

Megatron's own reader trusts an index; a damaged one is a traceback there, or text read past the end. So the two files
are held against each other before anything is read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from os import SEEK_CUR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import DataError

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

INDEX_MAGIC = b"MMIDIDX\0\0"
INDEX_HEADER = struct.Struct("<9sQBQQ")
REMEDY = "tokenize the source again"


def token_sources(tokens: Path, split: str) -> dict[str, Path]:
    """The sources of a tokens folder's split: name -> path prefix of its `.bin` and `.idx`, sorted.

    Raises:
        DataError: when there are none, or one of a pair is missing.
    """
    folder = tokens / split
    found = {path.stem: path.with_suffix("") for path in sorted(folder.glob("*.bin"))}
    if not found:
        raise DataError(f"{folder}: no .bin file; give a folder of tokens with {split}/SOURCE.bin and .idx")
    for prefix in found.values():
        if not prefix.with_suffix(".idx").is_file():
            raise DataError(f"{prefix}.idx: missing beside its .bin; {REMEDY}")
    return found


def token_file_stamp(prefix: str) -> list[int]:
    """Sizes and time of a source's files, whose contents must fit together.

    Raises:
        DataError: where Megatron would fail with a traceback, or read past the end.
    """
    TokenFile.open(Path(prefix))
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    return [index.stat().st_size, data.stat().st_size, data.stat().st_mtime_ns]


@dataclass(frozen=True)
class TokenFile:
    """A source's tokens, mapped and not read, and where its documents lie.

    Attributes:
        tokens: `[tokens]`, in the file's own integer type.
        bounds: `[documents + 1]`; document i is `tokens[bounds[i]:bounds[i + 1]]`.
    """

    tokens: NDArray[Any]
    bounds: NDArray[int64]

    @classmethod
    def open(cls, prefix: Path, remedy: str = REMEDY) -> TokenFile:
        """Map `PREFIX.bin` and read the document bounds from `PREFIX.idx`.

        The layout is that of Megatron-Core's indexed_dataset.py: magic, version, type code, counts of sequences and of
        documents + 1, then lengths (int32), byte offsets (int64) and document starts (int64).

        Raises:
            DataError: when the two do not fit together; `remedy` ends its message.
        """
        import numpy
        from megatron.core.datasets.indexed_dataset import DType

        index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        with open(index, "rb") as handle:
            header = handle.read(INDEX_HEADER.size)
            magic, version, code, sequences, documents = (
                INDEX_HEADER.unpack(header) if len(header) == INDEX_HEADER.size else (b"", 0, 0, 0, 0)
            )
            expected = INDEX_HEADER.size + 12 * sequences + 8 * documents
            known = magic == INDEX_MAGIC and version == 1 and code in {kind.value for kind in DType}
            if not known or index.stat().st_size != expected:
                raise DataError(f"{index}: not a whole index of a token file; {remedy}")
            lengths = numpy.fromfile(handle, numpy.int32, sequences)
            handle.seek(8 * sequences, SEEK_CUR)
            starts = numpy.fromfile(handle, numpy.int64, documents)
        ends = numpy.concatenate([[0], numpy.cumsum(lengths, dtype=numpy.int64)])
        promised = int(ends[-1]) * DType.size(code)
        if not promised:
            raise DataError(f"{data}: holds no tokens; {remedy}")
        if promised != data.stat().st_size:
            raise DataError(f"{data}: {data.stat().st_size} bytes, its index says {promised}; {remedy}")
        ordered = len(starts) > 1 and starts[0] == 0 and bool((numpy.diff(starts) >= 0).all())
        if not ordered or starts[-1] != sequences:
            raise DataError(f"{index}: its documents do not follow one another; {remedy}")
        tokens = numpy.memmap(data, dtype=DType.dtype_from_code(code), mode="r")
        return cls(tokens, ends[starts])

    @property
    def lengths(self) -> NDArray[int64]:
        """Tokens of each document, `[documents]`."""
        return self.bounds[1:] - self.bounds[:-1]

    def document(self, number: int) -> NDArray[Any]:
        """One document's tokens."""
        return self.tokens[self.bounds[number] : self.bounds[number + 1]]
