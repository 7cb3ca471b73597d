"""The statistics of whole tensors, collected block by block."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_prism.merging.methods import (
    HALF,
    MASK_CHUNK,
    MagnitudeCounts,
    dare_mask,
    linear,
    slerp_weights,
    ties,
)


@pytest.mark.parametrize("keep", [1, 17, 500, 1000])
def test_the_kth_magnitude_is_exact(keep):
    values = torch.randn(1000) * torch.logspace(-30, 20, 1000)
    values[::7] = 0
    values[3] = values[900]
    counter = MagnitudeCounts(keep)
    for _ in range(2):
        found = counter.finish(
            sum((counter.count(block) for block in values.split(64)), torch.zeros(HALF).long())
        )
    assert found == float(values.abs().sort(descending=True).values[keep - 1])


def test_a_mask_does_not_depend_on_where_it_is_cut():
    count = 2 * MASK_CHUNK + 777
    whole = dare_mask(3, "a.weight", 0, first=0, count=count, density=0.25)
    cut = torch.cat(
        [
            dare_mask(3, "a.weight", 0, first=first, count=5000, density=0.25)
            for first in range(0, 2 * MASK_CHUNK, 5000)
        ]
    )
    assert torch.equal(whole[: 2 * MASK_CHUNK], cut[: 2 * MASK_CHUNK])
    assert abs(float(whole.mean()) - 0.25) < 0.01
    for other in (("b.weight", 0, 3), ("a.weight", 1, 3), ("a.weight", 0, 4)):
        name, model, seed = other
        assert not torch.equal(whole[:1000], dare_mask(seed, name, model, first=0, count=1000, density=0.25))
    assert not torch.equal(whole[:MASK_CHUNK], whole[MASK_CHUNK : 2 * MASK_CHUNK])


def test_slerp_keeps_the_length_on_a_sphere_and_is_linear_where_the_arc_is_a_line():
    a, b = slerp_weights(0.5, 0.0, 4.0, 4.0)
    assert math.isclose(4 * a * a + 4 * b * b, 4.0)
    assert slerp_weights(0.25, 1.0, 1.0, 1.0) == [0.75, 0.25]
    assert slerp_weights(0.25, -1.0, 1.0, 1.0) == [0.75, 0.25]
    assert slerp_weights(0.25, 0.0, 0.0, 1.0) == [0.75, 0.25]


def test_ties_of_one_weight_is_the_papers_mean():
    base = torch.zeros(4)
    models = [torch.tensor([1.0, 2.0, -3.0, 0.1]), torch.tensor([3.0, -1.0, -1.0, 0.2])]
    merged = ties(base, models, (0.5, 0.5), (0.5, 0.5))
    assert torch.equal(merged, torch.tensor([1.0, 1.0, -1.0, 0.0]))


def test_linear_does_not_fuse_product_and_sum():
    """A fused multiply-add rounds once instead of twice, which gives other results for these numbers."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 100_000, generator=generator)
    expected = a * 0.15 + b * 0.85
    assert torch.equal(linear([a, b], (0.15, 0.85)), expected)
    assert not torch.equal(torch.add(a * 0.15, b, alpha=0.85), expected)
