"""Megatron's `.bin`/`.idx` token files: finds them, checks that they are complete, and reads documents from them.

Megatron's reader trusts the index: with a damaged one it fails with a traceback, or reads past the end. So the two
files are compared with each other before anything is read.
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
        DataError: if there are none, or one of a pair is missing.
    """
    folder = tokens / split
    found = {path.stem: path.with_suffix("") for path in sorted(folder.glob("*.bin"))}
    if not found:
        raise DataError(f"{folder}: no .bin file; use a folder of tokens with {split}/SOURCE.bin and .idx")
    for prefix in found.values():
        if not prefix.with_suffix(".idx").is_file():
            raise DataError(f"{prefix}.idx: missing, although its .bin exists; {REMEDY}")
    return found


def token_file_stamp(prefix: str) -> list[int]:
    """Sizes and modification time of a source's two files, after checking that they match.

    Raises:
        DataError: if Megatron would fail with a traceback, or read past the end.
    """
    TokenFile.open(Path(prefix))
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    return [index.stat().st_size, data.stat().st_size, data.stat().st_mtime_ns]


@dataclass(frozen=True)
class TokenFile:
    """The memory-mapped tokens of a source, and the bounds of its documents.

    Attributes:
        tokens: `[tokens]`, in the file's integer type.
        bounds: `[documents + 1]`; document i is `tokens[bounds[i]:bounds[i + 1]]`.
        chunk_bounds: `[chunks + 1]`; the chunks (Megatron's sequences) of document i are those inside its bounds.
    """

    tokens: NDArray[Any]
    bounds: NDArray[int64]
    chunk_bounds: NDArray[int64]

    @classmethod
    def open(cls, prefix: Path, remedy: str = REMEDY) -> TokenFile:
        """Map `PREFIX.bin` and read the document bounds from `PREFIX.idx`.

        The layout is that of Megatron-Core's indexed_dataset.py: magic, version, type code, counts of sequences and of
        documents + 1, then lengths (int32), byte offsets (int64) and document starts (int64).

        Raises:
            DataError: if the two files do not match; `remedy` ends its message.
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
                raise DataError(f"{index}: not a complete index of a token file; {remedy}")
            lengths = numpy.fromfile(handle, numpy.int32, sequences)
            handle.seek(8 * sequences, SEEK_CUR)
            starts = numpy.fromfile(handle, numpy.int64, documents)
        ends = numpy.concatenate([[0], numpy.cumsum(lengths, dtype=numpy.int64)])
        expected_bytes = int(ends[-1]) * DType.size(code)
        if not expected_bytes:
            raise DataError(f"{data}: contains no tokens; {remedy}")
        if expected_bytes != data.stat().st_size:
            raise DataError(
                f"{data}: {data.stat().st_size} bytes, but its index says {expected_bytes}; {remedy}"
            )
        ordered = len(starts) > 1 and starts[0] == 0 and bool((numpy.diff(starts) >= 0).all())
        if not ordered or starts[-1] != sequences:
            raise DataError(f"{index}: its documents are not consecutive; {remedy}")
        tokens = numpy.memmap(data, dtype=DType.dtype_from_code(code), mode="r")
        return cls(tokens, ends[starts], ends)

    @property
    def lengths(self) -> NDArray[int64]:
        """Number of tokens of each document, `[documents]`."""
        return self.bounds[1:] - self.bounds[:-1]

    def document(self, number: int) -> NDArray[Any]:
        """The tokens of one document."""
        return self.tokens[self.bounds[number] : self.bounds[number + 1]]

    def chunk_lengths(self, number: int) -> list[int]:
        """The lengths of the chunks of one document, which add up to its length."""
        import numpy

        first, last = numpy.searchsorted(self.chunk_bounds, self.bounds[number : number + 2])
        lengths: list[int] = numpy.diff(self.chunk_bounds[first : last + 1]).tolist()
        return lengths
