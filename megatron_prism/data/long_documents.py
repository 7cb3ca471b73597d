"""Which documents a long-context stage keeps, and how one longer than a sequence is cut into chunks.

The paper filters "to remove short-context samples" without saying below which length, and splits longer documents
"(optionally) into overlapping chunks" without saying by how much they overlap (its section 12.3): both are settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray


@dataclass(frozen=True)
class Selection:
    """Documents that stay, by number, and how many went.

    Attributes:
        kept: `[kept]`, ascending.
        dropped_short: documents below the threshold.
        dropped_long: documents longer than a sequence, where those are not split.
        dropped_tokens: the tokens of both.
    """

    kept: NDArray[numpy.int64]
    dropped_short: int
    dropped_long: int
    dropped_tokens: int


@dataclass(frozen=True)
class Chunks:
    """Pieces of documents, `[chunks]` each, in the documents' order.

    Attributes:
        document: number of the document.
        start: first token of the piece within its document.
        length: tokens of the piece.
        dropped_tokens: tails of one token, which were left out.
    """

    document: NDArray[numpy.int64]
    start: NDArray[numpy.int64]
    length: NDArray[numpy.int64]
    dropped_tokens: int


def select(lengths: NDArray[numpy.int64], min_tokens: int, longest: int, split_long: bool) -> Selection:
    """Keep documents of at least `min_tokens`, and of at most `longest` unless those are to be split."""
    short = lengths < min_tokens
    long = (lengths > longest) & ~short & (not split_long)
    gone = short | long
    return Selection(
        numpy.flatnonzero(~gone), int(short.sum()), int(long.sum()), int(lengths[gone].sum(dtype=numpy.int64))
    )


def cut(documents: NDArray[numpy.int64], lengths: NDArray[numpy.int64], longest: int, overlap: int) -> Chunks:
    """Cut documents into chunks of at most `longest` tokens, neighbours sharing `overlap` of them.

    Every chunk but a document's last is `longest` long, and the last holds at least one token that the one before
    does not. A last chunk of one token, which only a document cut without overlap can leave, is dropped: it is the
    document's end mark, and a sequence of its own would have nothing to predict.

    Args:
        documents: `[kept]`, numbers of documents.
        lengths: `[kept]`, their lengths.
    """
    stride = longest - overlap
    beyond = numpy.maximum(lengths - longest, 0)
    counts = 1 + -(-beyond // stride)
    first = numpy.cumsum(counts) - counts
    start = (numpy.arange(counts.sum()) - numpy.repeat(first, counts)) * stride
    length = numpy.minimum(numpy.repeat(lengths, counts) - start, longest)
    lone = (length == 1) & (start > 0)
    return Chunks(numpy.repeat(documents, counts)[~lone], start[~lone], length[~lone], int(lone.sum()))
