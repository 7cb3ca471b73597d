"""Best-fit-decreasing compared with a simple ten-line version, on lengths that reach every branch."""

import numpy
import pytest

from megatron_prism.data.best_fit import WORD_BITS, best_fit_decreasing


def by_hand(lengths, capacity):
    room, touched, found = [], [], {}
    for turn, item in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fits = [buffer for buffer in range(len(room)) if room[buffer] >= lengths[item]]
        if not fits:
            room.append(capacity)
            touched.append(turn)
            fits = [len(room) - 1]
        best = min(fits, key=lambda buffer: (room[buffer], -touched[buffer]))
        room[best] -= lengths[item]
        touched[best] = turn
        found[item] = best
    return [found[item] for item in range(len(lengths))]


def fills(lengths, buffers):
    return sorted(numpy.bincount(buffers, weights=lengths).astype(int).tolist())


# Capacities around one word of the bitmap and of several words; few and many equal lengths.
@pytest.mark.parametrize("capacity", [1, 2, 7, 100, WORD_BITS - 1, WORD_BITS, WORD_BITS + 1, 5000])
@pytest.mark.parametrize("longest", [0.05, 0.4, 1.0])
def test_the_same_assignment_as_by_hand(capacity, longest):
    random = numpy.random.default_rng(capacity)
    for items in (1, 2, 30, 150):
        for distinct in (3, capacity):
            top = max(1, int(longest * capacity))
            lengths = random.integers(1, top + 1, items)
            if distinct < top:
                lengths = random.choice(random.integers(1, top + 1, distinct), items)
            found = best_fit_decreasing(lengths, capacity).tolist()
            assert found == by_hand(lengths.tolist(), capacity)
            assert set(found) == set(range(max(found) + 1))
            assert max(fills(lengths, found)) <= capacity


def test_the_best_fit_is_taken_and_not_the_first():
    # 6 are left in the first buffer and 5 in the second, so the item of length 5 fits into both.
    assert best_fit_decreasing(numpy.array([14, 8, 7, 5]), 20).tolist() == [0, 1, 1, 1]


def test_the_longest_is_placed_first():
    assert best_fit_decreasing(numpy.array([1, 5, 9]), 10).tolist() == [0, 1, 0]


def test_a_long_corpus_leaves_almost_no_room():
    lengths = numpy.random.default_rng(0).lognormal(numpy.log(2000), 1.0, 100_000).astype(numpy.int64)
    lengths = numpy.clip(lengths, 1, 131_073)
    buffers = best_fit_decreasing(lengths, 131_073)
    filled = numpy.bincount(buffers, weights=lengths)
    assert filled.max() <= 131_073
    assert 1 - lengths.sum() / (131_073 * len(filled)) < 1e-3
