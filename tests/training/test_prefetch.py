"""Batches that a background thread reads ahead: same batches, same order, errors in their step, no thread left."""

from __future__ import annotations

import threading

import pytest
import torch
from parallel_runs import Motifs

from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig, BatchRamp
from megatron_prism.training.micro_batches import RankShare
from megatron_prism.training.prefetch import Prefetcher

LAST = 8


class Reader:
    """Reads the position itself; remembers what was read, and can fail or block at a position."""

    def __init__(self, fail_at: int | None = None, block_at: int | None = None) -> None:
        self.fail_at, self.block_at = fail_at, block_at
        self.read: list[int] = []
        self.go_on = threading.Event()
        self.reached = {position: threading.Event() for position in range(LAST)}

    def __call__(self, position: int) -> int:
        self.read.append(position)
        self.reached[position].set()
        if position == self.block_at:
            assert self.go_on.wait(30)
        if position == self.fail_at:
            raise OSError("the disk is gone")
        return position * 10


def following(position: int) -> int | None:
    return position + 1 if position + 1 < LAST else None


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_batch_once_and_in_order(depth):
    reader = Reader()
    batches = Prefetcher(reader, following, depth)
    assert [batches.take(position) for position in range(LAST)] == [10 * position for position in range(LAST)]
    assert reader.read == list(range(LAST))
    batches.close()
    assert not threads()


def test_the_next_batches_are_read_while_a_step_computes():
    # The reader of the third batch waits for a slow disk. The first two steps are not held up by it.
    reader = Reader(block_at=2)
    batches = Prefetcher(reader, following, 2)
    assert batches.take(0) == 0
    assert reader.reached[2].wait(30), "read ahead without being asked for"
    assert batches.take(1) == 10
    reader.go_on.set()
    assert batches.take(2) == 20
    batches.close()
    # Negative control: without reading ahead, nothing is read before it is asked for.
    lazy = Reader()
    assert Prefetcher(lazy, following, 0).take(0) == 0
    assert lazy.read == [0]


def test_an_error_belongs_to_its_step():
    batches = Prefetcher(Reader(fail_at=1), following, 3)
    assert batches.take(0) == 0
    with pytest.raises(OSError, match="the disk is gone"):
        batches.take(1)
    assert batches.take(2) == 20
    batches.close()
    assert not threads()


def test_a_run_that_goes_back_gets_the_earlier_batches():
    reader = Reader()
    batches = Prefetcher(reader, following, 2)
    assert [batches.take(position) for position in (0, 1, 2, 1, 2, 5)] == [0, 10, 20, 10, 20, 50]
    batches.close()


def test_nothing_is_read_after_the_last_batch():
    reader = Reader()
    batches = Prefetcher(reader, following, 5)
    batches.take(LAST - 2)
    batches.take(LAST - 1)
    batches.close()
    assert reader.read == [LAST - 2, LAST - 1]


def test_a_rank_reads_its_share_at_every_size_of_a_ramp():
    ramp = BatchRamp(start=4, increment=4, samples=8)
    batch, parallel = BatchConfig(16, 2, 12, ramp), ParallelConfig(data_parallel_size=2)
    ranks = [RankShare(batch, parallel, rank) for rank in range(2)]
    data, consumed = Motifs(16), 0
    for size in (4, 8, 12):
        assert batch.size_after(consumed) == size
        shares = [rank.read(data, consumed, size) for rank in ranks]
        found = torch.cat([part["tokens"] for pair in zip(*shares, strict=True) for part in pair])
        expected = torch.stack([data[index]["tokens"] for index in range(consumed, consumed + size)])
        assert torch.equal(found, expected)
        consumed += size
