"""Merges in memory: the bits of the merge's files, and exactly the given model where the weight of one is 1."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_merging import as_megatron, assert_same_bits, change, run, tensors, variant
from tiny_models import make_checkpoint

from megatron_prism.conversion.weights import open_weights
from megatron_prism.errors import CheckpointError
from megatron_prism.merging.in_memory import MemoryMerge


@pytest.fixture(scope="module", params=["granite-h", "llama"])
def three(request, tmp_path_factory):
    """A base in bf16, a mid-trained model and one of RL; the last as a Megatron folder."""
    root = tmp_path_factory.mktemp(request.param)
    base = make_checkpoint(request.param, root / "base", torch.bfloat16)
    midtrain = variant(base, root / "midtrain", 1)
    return [base, midtrain, as_megatron(variant(midtrain, root / "rl", 2, scale=0.001))]


def combined(models, weights, dtype=None):
    opened = [open_weights(each) for each in models]
    with MemoryMerge(opened, dtype) as source, source.combine(weights) as combination:
        return {name: combination.tensors([name])[0].clone() for name in opened[0].shapes}


def test_the_bits_are_those_of_the_merges_files(three, tmp_path):
    a, b = Fraction(9, 10), Fraction(-3, 10)
    run(tmp_path / "merged", three[1:], three[0], method="interpolate", weights=[a, b])
    found = combined(three, [1 - a, a - b, b])
    assert_same_bits(found, tensors(tmp_path / "merged"))
    # Negative control: the neighbouring point has other bits.
    with pytest.raises(AssertionError):
        assert_same_bits(combined(three, [1 - a, a - b - Fraction(1, 100), b + Fraction(1, 100)]), found)


def test_in_fp32_it_is_the_sum_in_fractions_rounded_once(three):
    weights = [Fraction(1, 10), Fraction(3, 5), Fraction(3, 10)]
    found = combined(three, weights, torch.float32)
    stored = [tensors(each) for each in three]
    for name in list(found)[:4]:
        for place in range(0, found[name].numel(), 37):
            exact = sum(
                weight * Fraction(float(each[name].flatten()[place]))
                for weight, each in zip(weights, stored, strict=True)
            )
            assert float(found[name].flatten()[place]) == float(
                torch.tensor(float(exact), dtype=torch.float32)
            )


def test_a_weight_of_one_gives_the_model_itself(three, tmp_path):
    """Also its signs of zero, which a sum with other models would lose, and its dtype."""
    signed = variant(three[1], tmp_path / "signed", 5, scale=0.0)
    state = load_file(signed / "model.safetensors")
    name = next(iter(state))
    state[name].view(-1)[:3] = -0.0
    save_file(
        {key: each.float() for key, each in state.items()}, signed / "model.safetensors", {"format": "pt"}
    )
    models = [three[0], signed, three[2]]
    for place in range(3):
        weights = [Fraction(int(number == place)) for number in range(3)]
        assert_same_bits(combined(models, weights), tensors(models[place]))


def test_numbers_that_are_not_finite_name_tensor_and_models(three, tmp_path):
    broken = variant(three[1], tmp_path / "broken", 5)
    name = list(load_file(broken / "model.safetensors"))[1]
    change(broken, name, (0,), float("nan"))
    with pytest.raises(CheckpointError, match=rf"tensor '{name}': the weights 1/2, 1/2 of .*broken"):
        combined([three[0], broken], [Fraction(1, 2), Fraction(1, 2)])
