"""Best-fit-decreasing bin packing, fast enough for tens of millions of lengths.

Items are placed from the longest to the shortest, each in the buffer with the smallest sufficient remaining capacity,
or else in a new buffer (paper, section 12.3; "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).

Capacities are integers with a known maximum. So buffers are grouped by remaining capacity, and a bitmap of two levels
finds the smallest sufficient one: the cost of a step does not grow with the number of buffers.
"""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

WORD_BITS = 1024


def best_fit_decreasing(lengths: NDArray[numpy.int64], capacity: int) -> NDArray[numpy.int64]:
    """The buffer of each item, `[items]`, numbered from 0 in the order in which buffers are opened.

    Equal items are placed in their order. Among buffers with equal remaining capacity, the last used is taken.

    Args:
        lengths: `[items]`, each 1 to `capacity`.
        capacity: capacity of a buffer.
    """
    order = numpy.argsort(-lengths, kind="stable")
    values, counts = numpy.unique(lengths, return_counts=True)
    buffers = _OpenBuffers(capacity)
    placed: list[int] = []
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            # A buffer that still has room for another item of this length is the best fit again, so each buffer takes
            # as many items as fit.
            room, chosen, per_buffer = buffers.take(length, count)
            *full, last = chosen
            items = min(per_buffer, count - per_buffer * len(full))
            for buffer in full:
                placed.extend([buffer] * per_buffer)
            placed.extend([last] * items)
            buffers.put_back(room - per_buffer * length, full)
            buffers.put_back(room - items * length, [last])
            count -= per_buffer * len(full) + items
    buffer_of = numpy.empty(len(lengths), numpy.int64)
    buffer_of[order] = placed
    return buffer_of


class _OpenBuffers:
    """Open buffers by remaining capacity. Buffers with equal room are in a stack, the last used on top."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._opened = 0
        self._stacks: dict[int, list[int]] = {}
        # Bit b of word w is set if a buffer has WORD_BITS * w + b left. Bit w of the summary is set if word w is not 0.
        self._words = [0] * (capacity // WORD_BITS + 1)
        self._summary = 0

    def take(self, length: int, count: int) -> tuple[int, list[int], int]:
        """Buffers for up to `count` items: remaining capacity, buffer numbers, and how many items fit into each."""
        room = self._smallest(length)
        if room is None:
            room = self._capacity
            per_buffer = room // length
            wanted = -(-count // per_buffer)
            chosen = list(range(self._opened, self._opened + wanted))
            self._opened += wanted
            return room, chosen, per_buffer
        per_buffer = room // length
        stack = self._stacks[room]
        wanted = -(-count // per_buffer)
        if wanted < len(stack):
            chosen = stack[: -wanted - 1 : -1]
            del stack[-wanted:]
        else:
            chosen = stack[::-1]
            self._forget(room)
        return room, chosen, per_buffer

    def put_back(self, room: int, numbers: list[int]) -> None:
        """Return buffers that have `room` left. Full buffers are not kept."""
        if not room or not numbers:
            return
        if room in self._stacks:
            self._stacks[room].extend(numbers)
            return
        self._stacks[room] = list(numbers)
        word, bit = divmod(room, WORD_BITS)
        self._words[word] |= 1 << bit
        self._summary |= 1 << word

    def _forget(self, room: int) -> None:
        del self._stacks[room]
        word, bit = divmod(room, WORD_BITS)
        self._words[word] ^= 1 << bit
        if not self._words[word]:
            self._summary ^= 1 << word

    def _smallest(self, length: int) -> int | None:
        """The smallest remaining capacity of at least `length`."""
        word, bit = divmod(length, WORD_BITS)
        here = self._words[word] >> bit
        if here:
            return length + _lowest_bit(here)
        above = self._summary >> (word + 1)
        if not above:
            return None
        word += 1 + _lowest_bit(above)
        return WORD_BITS * word + _lowest_bit(self._words[word])


def _lowest_bit(number: int) -> int:
    return (number & -number).bit_length() - 1
