"""The batches of the next steps, read by a background thread, so that a slow file system does not stall a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch]):
    """Batches by their position in the data, in any order; the following ones are read ahead.

    There is one thread, because Megatron's datasets open their files when they are first read, which several threads
    must not do at once.

    Args:
        read: position -> batch.
        following: position -> position of the next batch, or None after the last one.
        depth: batches that are read ahead; 0 reads each batch when it is asked for.
    """

    def __init__(
        self, read: Callable[[int], Batch], following: Callable[[int], int | None], depth: int
    ) -> None:
        self._read, self._following, self._depth = read, following, depth
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="batches") if depth else None

    def take(self, position: int) -> Batch:
        """The batch at a position; an exception of its reading is raised here."""
        if self._threads is None:
            return self._read(position)
        if not self._ahead or self._ahead[0][0] != position:
            self._forget()
            self._submit(position)
        _, batch = self._ahead.popleft()
        last = self._ahead[-1][0] if self._ahead else position
        while len(self._ahead) < self._depth and (following := self._following(last)) is not None:
            self._submit(following)
            last = following
        return batch.result()

    def close(self) -> None:
        """Stop reading ahead and end the thread."""
        self._forget()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _submit(self, position: int) -> None:
        assert self._threads is not None
        self._ahead.append((position, self._threads.submit(self._read, position)))

    def _forget(self) -> None:
        for _, batch in self._ahead:
            batch.cancel()
        self._ahead.clear()
