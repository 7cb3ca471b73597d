"""A checkpoint in the format of the optimizer's buffers is loaded by any layout, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoint_layouts import CHANGES, main
from parallel_runs import results_of

from megatron_prism.models.checkpoint_io import DP_RESHARDABLE


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    return results_of(main, tmp_path_factory.mktemp("layouts"), (2, 1))


@pytest.mark.parametrize(("model", "source", "targets"), CHANGES, ids=lambda value: str(value)[:6])
def test_every_layout_reads_the_same_numbers(model, source, targets, results):
    assert results[f"{model}-{source}-format"] == DP_RESHARDABLE
    for target in [*targets[2], *targets[1]]:
        assert results[f"{model}-{source}-{target}"] == [2, []], target


def test_the_comparison_sees_a_shifted_index(results):
    assert results["shifted"] > 10


def test_ranks_share_the_writing_and_leave_a_damaged_checkpoint_together(results):
    damage = results["damage"]
    assert damage["files"] == 2
    assert damage["steps"] == [1, 1]
    # The weights are on both ranks, yet each writes a half.
    assert max(damage["sizes"]) < 1.2 * min(damage["sizes"])
