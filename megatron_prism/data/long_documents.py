"""Selects the documents of a long-context stage, and splits documents longer than a sequence into chunks.

The paper filters "to remove short-context samples" without naming a length, and splits longer documents "(optionally)
into overlapping chunks" without naming the overlap (section 12.3), so both are settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray


@dataclass(frozen=True)
class Selection:
    """The numbers of the documents to keep, and counts of the dropped ones.

    Attributes:
        kept: `[kept]`, ascending.
        dropped_short: documents below the threshold.
        dropped_long: documents longer than a sequence, if these are not split.
        dropped_tokens: number of tokens in all dropped documents.
    """

    kept: NDArray[numpy.int64]
    dropped_short: int
    dropped_long: int
    dropped_tokens: int


@dataclass(frozen=True)
class Chunks:
    """Pieces of documents, `[chunks]` each, in the documents' order.

    Attributes:
        document: number of each chunk's document.
        start: position of each chunk's first token in its document.
        length: number of tokens of each chunk.
        dropped_tokens: number of last chunks of one token, which are left out.
    """

    document: NDArray[numpy.int64]
    start: NDArray[numpy.int64]
    length: NDArray[numpy.int64]
    dropped_tokens: int


def select(lengths: NDArray[numpy.int64], min_tokens: int, max_length: int, split_long: bool) -> Selection:
    """Keep documents of at least `min_tokens`, and of at most `max_length` unless these are split."""
    short = lengths < min_tokens
    long = (lengths > max_length) & ~short & (not split_long)
    dropped = short | long
    return Selection(
        numpy.flatnonzero(~dropped),
        int(short.sum()),
        int(long.sum()),
        int(lengths[dropped].sum(dtype=numpy.int64)),
    )


def cut(
    documents: NDArray[numpy.int64], lengths: NDArray[numpy.int64], max_length: int, overlap: int
) -> Chunks:
    """Split documents into chunks of at most `max_length` tokens; neighbouring chunks share `overlap` tokens.

    All chunks except a document's last have `max_length` tokens. The last has at least one token that the previous one
    does not have. A last chunk of one token, which is possible only without overlap, is dropped: it is the
    document's end token, and there would be nothing to predict.

    Args:
        documents: `[kept]`, numbers of documents.
        lengths: `[kept]`, their lengths.
    """
    stride = max_length - overlap
    beyond = numpy.maximum(lengths - max_length, 0)
    counts = 1 + -(-beyond // stride)
    first = numpy.cumsum(counts) - counts
    start = (numpy.arange(counts.sum()) - numpy.repeat(first, counts)) * stride
    length = numpy.minimum(numpy.repeat(lengths, counts) - start, max_length)
    lone = (length == 1) & (start > 0)
    return Chunks(numpy.repeat(documents, counts)[~lone], start[~lone], length[~lone], int(lone.sum()))
