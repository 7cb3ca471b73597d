"""A tiny dense and a tiny hybrid model go the whole way on an imitated GPU, with the numbers of the CPU."""

from __future__ import annotations

import pytest
import torch

from gpu_imitation.journey import MODELS, STEPS, travel
from gpu_imitation.processes import imitated, on_cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU of its own")
KINDS = pytest.mark.parametrize("kind", MODELS)
PASSES = ("train", "receipt", "extension", "extension receipt", "export", "rl", "generation")


@pytest.fixture(scope="module")
def gpu(tokens, tokenizer_artifact, tmp_path_factory):
    inputs = {"tokens": tokens, "tokenizer": tokenizer_artifact}
    return imitated(travel, inputs, tmp_path_factory.mktemp("gpu"), True)


@pytest.fixture(scope="module")
def cpu(tokens, tokenizer_artifact, tmp_path_factory):
    inputs = {"tokens": tokens, "tokenizer": tokenizer_artifact}
    return on_cpu(travel, inputs, tmp_path_factory.mktemp("cpu"), False)


def close(found, expected, where=""):
    """Equal but for rounding. `gap` is the difference of two roundings itself."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            if key != "gap":
                close(found[key], expected[key], f"{where} {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
            close(mine, theirs, f"{where} {index}")
    elif isinstance(expected, float):
        # Two implementations of Adam round differently, and later gradients show it most: 2e-5 on an Intel Xeon.
        rounding = 1e-4 if where.endswith("grad_norm") else 1e-5
        assert found == pytest.approx(expected, rel=rounding, abs=1e-6), where
    else:
        assert found == expected, where


@KINDS
@pytest.mark.parametrize("part", PASSES)
def test_the_numbers_of_the_cpu(gpu, cpu, kind, part):
    close(gpu[kind][part], cpu[kind][part])


@KINDS
def test_an_interrupted_run_goes_on_with_the_same_numbers(gpu, kind):
    assert len([line for line in gpu[kind]["train"] if "loss" in line]) == STEPS
    assert gpu[kind]["train resumed"] == gpu[kind]["train"]


@KINDS
def test_an_interrupted_run_of_rl_goes_on_with_the_same_numbers(gpu, kind):
    assert [line["step"] for line in gpu[kind]["rl"]] == [1, 2]
    assert gpu[kind]["rl"][0]["grad_norm"] > 0
    assert gpu[kind]["rl resumed"] == gpu[kind]["rl"]


@KINDS
def test_only_attention_was_trained(gpu, kind):
    receipt = gpu[kind]["extension receipt"]
    assert 0 < receipt["trainable_parameters"] < receipt["parameters"]
