"""Question: how long does best-fit-decreasing take, and what does it save over joining documents end to end?

    python benchmarks/packing.py --documents 1000000 --json result.json

Lengths are log-normal (median 2,000 tokens, sigma 1), clipped to a sequence, so no document has to be cut. Documents
that are joined end to end fill all sequences, but are cut where a sequence ends. Packed documents stay whole, but
sequences have padding. Next-fit also keeps documents whole, but places them in the order of arrival without a search.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import measure
import numpy
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from megatron_prism.data.best_fit import best_fit_decreasing

MEDIAN, SIGMA = 2000, 1.0
Lengths = NDArray[numpy.int64]


def next_fit(lengths: Lengths, capacity: int) -> Lengths:
    """Place documents in order of arrival; if one does not fit, start a new sequence."""
    found, buffer, room = numpy.empty_like(lengths), 0, capacity
    for item, length in enumerate(lengths.tolist()):
        if length > room:
            buffer, room = buffer + 1, capacity
        room -= length
        found[item] = buffer
    return found


def packed(method: Callable[[Lengths, int], Lengths], lengths: Lengths, capacity: int) -> dict[str, Any]:
    """Seconds, sequences and padding of a packing that keeps documents whole."""
    start = time.perf_counter()
    buffers = method(lengths, capacity)
    seconds = time.perf_counter() - start
    filled = numpy.bincount(buffers, weights=lengths)
    assert filled.max() <= capacity
    places = capacity * len(filled)
    padding = float(1 - lengths.sum() / places)
    return {
        "seconds": seconds,
        "sequences": len(filled),
        "padding_share": padding,
        "cut": 0.0,
        "cut_tokens": 0.0,
    }


def joined(lengths: Lengths, capacity: int) -> dict[str, Any]:
    """Joined end to end: the share of documents that are cut, and the share of tokens in these."""
    start = time.perf_counter()
    ends = numpy.cumsum(lengths)
    cut = (ends - 1) // capacity != (ends - lengths) // capacity
    seconds = time.perf_counter() - start
    sequences = -(-int(ends[-1]) // capacity)
    return {
        "seconds": seconds,
        "sequences": sequences,
        "padding_share": float(1 - ends[-1] / (sequences * capacity)),
        "cut": float(cut.mean()),
        "cut_tokens": float(lengths[cut].sum() / lengths.sum()),
    }


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--length", type=int, default=131_072, help="tokens per sequence")
    parser.add_argument("--min-tokens", type=int, default=2, help="drop shorter documents before packing")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    capacity = arguments.length + 1
    drawn = numpy.random.default_rng(arguments.seed).lognormal(numpy.log(MEDIAN), SIGMA, arguments.documents)
    lengths = numpy.clip(drawn.astype(numpy.int64), 2, capacity)
    lengths = lengths[lengths >= arguments.min_tokens]
    results = {
        "joined end to end": joined(lengths, capacity),
        "next fit, in order of arrival": packed(next_fit, lengths, capacity),
        "best fit decreasing": packed(best_fit_decreasing, lengths, capacity),
    }
    table = Table(
        title=f"{len(lengths):,} documents, {lengths.sum():,} tokens, sequences of {arguments.length:,}"
    )
    for column in ("", "seconds", "sequences", "padding", "documents cut", "tokens in them"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in results.items():
        shares = (f"{row[key]:.4%}" for key in ("padding_share", "cut", "cut_tokens"))
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['sequences']:,}", *shares)
    Console().print(table)
    measure.write(arguments, {"results": results})


if __name__ == "__main__":
    main()
