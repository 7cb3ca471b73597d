"""The restored share of a lost ability, compared with hand counts and a ten-line bootstrap."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import zstandard

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.ruler.recovery import read_recalls, recovered


def scores(rate, count, task="a", seed=1):
    """`count` samples, of which the share `rate` is correct."""
    right = [1.0] * round(rate * count) + [0.0] * (count - round(rate * count))
    random.Random(seed).shuffle(right)
    return {task: dict(enumerate(right))}


def test_the_share_is_relative_to_the_loss():
    share = recovered(scores(0.9, 100), scores(0.1, 100, seed=2), scores(0.7, 100, seed=3))
    assert share.mean == pytest.approx(0.75)
    assert share.low < 0.75 < share.high
    assert recovered(scores(0.9, 100), scores(0.1, 100, seed=2), scores(0.1, 100, seed=2)).mean == 0
    # More is restored than was lost, and a further loss.
    assert recovered(
        scores(0.6, 100), scores(0.2, 100, seed=2), scores(1.0, 100, seed=3)
    ).mean == pytest.approx(2)
    assert recovered(
        scores(0.9, 100), scores(0.5, 100, seed=2), scores(0.1, 100, seed=3)
    ).mean == pytest.approx(-1)


def test_tasks_have_equal_weight_whatever_their_number_of_samples():
    before = scores(1.0, 10) | scores(1.0, 90, "b")
    lost = scores(0.0, 10) | scores(0.0, 90, "b")
    restored = scores(1.0, 10) | scores(0.0, 90, "b")
    assert recovered(before, lost, restored).mean == pytest.approx(0.5)


def test_the_interval_is_the_paired_bootstrap():
    models = [scores(0.8, 60, seed=1), scores(0.3, 60, seed=2), scores(0.6, 60, seed=3)]
    share = recovered(*models)
    table = np.array([[model["a"][index] for model in models] for index in range(60)])
    generator, drawn = np.random.default_rng(7), []
    for _ in range(4000):
        before, lost, restored = table[generator.integers(60, size=60)].mean(axis=0)
        drawn.append((restored - lost) / (before - lost))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert share.low == pytest.approx(low, abs=0.04)
    assert share.high == pytest.approx(high, abs=0.04)


def test_a_pair_that_always_agrees_is_certain():
    """The restored model is correct on exactly the same samples as the first, so the paired interval has width 0."""
    before = scores(0.8, 50)
    share = recovered(before, scores(0.0, 50), before)
    assert (share.mean, share.low, share.high) == (1.0, 1.0, 1.0)


def test_without_a_loss_there_is_no_share():
    assert recovered(scores(0.5, 40), scores(0.5, 40, seed=2), scores(0.9, 40, seed=3)) is None
    assert recovered(scores(0.5, 40), scores(0.7, 40, seed=2), scores(0.9, 40, seed=3)) is None


def test_other_samples_are_refused():
    with pytest.raises(ArtifactError, match="task 'a': the models did not answer the same samples"):
        recovered(scores(0.5, 40), scores(0.5, 41), scores(0.5, 40))


def test_recalls_are_read_from_an_artifact(tmp_path):
    lines = [{"length": 128, "task": "a", "index": i, "recall": i / 2, "prediction": "x"} for i in range(3)]
    with zstandard.open(tmp_path / "samples.jsonl.zst", "wb") as handle:
        handle.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    assert read_recalls(tmp_path) == {128: {"a": {0: 0.0, 1: 0.5, 2: 1.0}}}
    (tmp_path / "samples.jsonl.zst").write_bytes(b"no zstd")
    with pytest.raises(ArtifactError, match=r"samples.jsonl.zst: damaged zstd data .*evaluate again"):
        read_recalls(tmp_path)
