"""Uneven and balanced pipelines: where the layers go, what is refused, and that a balanced split is the best one."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from megatron.core.ssm.mamba_block import MambaStack
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from parallel_runs import layout

from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import transformer_config
from megatron_prism.pipeline.config import apply_overrides
from megatron_prism.planning.flops import flops_per_token
from megatron_prism.planning.memory import training_memory
from megatron_prism.planning.pipeline_split import stage_costs, with_split
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.stage import Reinforce
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.stage import Train

# Mamba layers in the front, attention with long rows at the end, and a large vocabulary.
PATTERN = "MMMMMMMM-M-M-*-*-*-*"
HYBRID = Architecture(
    "nemotron_h", 4096, 64, len(PATTERN), 192, 8, 4, 16, activation="squared_relu", position_embedding="none",
    hybrid_pattern=PATTERN, mamba_num_heads=8, mamba_head_dim=16, mamba_state_dim=16, mamba_num_groups=2,
    tie_word_embeddings=False, max_position_embeddings=8192,
)  # fmt: skip
DENSE = Architecture("granite", 4096, 64, 8, 192, 8, 4, 16, max_position_embeddings=8192)
LENGTH = 1024


class Rank:
    """A pipeline rank, as upstream's MambaStack asks for it."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = lambda: rank, lambda: size


def upstream_stages(layers: int, parallel: ParallelConfig) -> list[int]:
    """The layers of each stage by Megatron-Core's own functions, which must agree on where each chunk begins."""
    config = transformer_config(replace(DENSE, num_layers=layers), parallel, torch.float32)
    pp, vp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    counts, end = [0] * pp, 0
    for chunk, rank in product(range(vp or 1), range(pp)):
        where = {"vp_stage": chunk if vp else None, "pp_rank": rank}
        assert get_transformer_layer_offset(config, **where) == end
        count = get_num_layers_to_build(config, **where)
        assert count > 0, "a chunk without layers"
        counts[rank], end = counts[rank] + count, end + count
        if vp is None:
            stack = MambaStack.__new__(MambaStack)
            stack.__dict__ |= {"config": config, "pp_group": Rank(rank, pp)}
            begin, kinds = stack._select_layers_for_pipeline_parallel(list(range(layers)))
            assert (begin + len(kinds), len(kinds)) == (end, count)
    assert end == layers
    return counts


def test_stages_are_those_of_megatron_or_refused():
    rng, accepted, refused = random.Random(3), 0, 0
    for _ in range(600):
        layers, pp, vp = rng.randint(2, 12), rng.choice([2, 3, 4]), rng.choice([None, None, 2])
        first, last = (rng.choice([None, 1, 2, 3, 4]) for _ in range(2))
        drawn = layout(pp=pp, vp=vp, first=first, last=last)
        try:
            ours = drawn.layers_per_stage(layers)
        except ParallelError:
            if pp == 2 and None not in (first, last):
                continue  # Megatron is given only one of two numbers that contradict each other.
            refused += 1
            with pytest.raises((ValueError, AssertionError)):
                upstream_stages(layers, drawn)
            continue
        accepted += 1
        assert ours == upstream_stages(layers, drawn), drawn
    assert min(accepted, refused) > 50


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"pp": 2, "split": "blanced"}, "split='blanced' is not possible; use one of even, balanced"),
        ({"pp": 2, "split": "balanced", "first": 3}, "layers_in_first_stage=3: split=balanced chooses"),
        ({"pp": 1, "last": 3}, "layers_in_last_stage=3 needs pipeline_model_parallel_size of at least 2"),
        ({"pp": 1, "split": "balanced"}, "split=balanced needs pipeline_model_parallel_size of at least 2"),
        ({"pp": 2, "first": 0}, "layers_in_first_stage=0: must be 1 or more"),
        ({"pp": 3}, "8 layers cannot be shared evenly by 3 pipeline stages"),
        ({"pp": 2, "first": 8}, "0 layers after 8 in the first and last stage cannot be shared evenly by 1"),
        ({"pp": 2, "first": 3, "last": 3}, "2 layers after 3 and 3 in the first and last stage cannot be"),
        ({"pp": 2, "vp": 2, "first": 3}, "a pipeline stage of 3 layers cannot be divided into virtual"),
        ({"pp": 9, "split": "balanced"}, "8 layers cannot be split over 9 pipeline stages; use fewer"),
        ({"pp": 2, "vp": 8, "split": "balanced"}, "2 pipeline stages of 8 virtual stages each"),
    ],
)
def test_a_split_that_cannot_work_is_refused_before_anything_is_built(sizes, message):
    with pytest.raises(ParallelError, match=message):
        Train(DENSE, "shoebox-mcs", batch=BatchConfig(32, 1, 16), parallel=layout(**sizes))
    with pytest.raises(ParallelError, match=message):
        Reinforce(DENSE, parallel=layout(**sizes), context_length=32)


def by_hand(kind: str) -> float:
    """Multiply-adds per token of a layer of HYBRID at 1,024 tokens."""
    return {
        "*": 64 * 128 * 2 + 64 * 64 * 2 + 2 * 128 * 1024 / 2,
        "-": 2 * 64 * 192,
        "M": 64 * (2 * 128 + 2 * 2 * 16 + 8) + 128 * 64 + 2 * 128 * 16,
    }[kind]


def test_costs_are_those_of_the_layers_and_of_an_output_layer_computed_twice():
    costs = stage_costs(HYBRID, layout(pp=2, first=8), LENGTH, "none")
    assert costs[0] == 6 * 8 * by_hand("M")
    assert costs[1] == pytest.approx(6 * (sum(map(by_hand, PATTERN[8:])) + 4 / 3 * 64 * 4096))
    assert sum(costs) == pytest.approx(flops_per_token(HYBRID, LENGTH) + 6 / 3 * 64 * 4096)
    assert stage_costs(HYBRID, layout(pp=2, first=8), LENGTH, "full")[0] == pytest.approx(4 / 3 * costs[0])


@pytest.mark.parametrize("pp", [2, 4])
def test_balanced_is_the_best_split_and_better_than_even(pp):
    found = with_split(HYBRID, layout(pp=pp, split="balanced"), LENGTH, "none")
    even = max(stage_costs(HYBRID, layout(pp=pp), LENGTH, "none"))
    balanced = max(stage_costs(HYBRID, found, LENGTH, "none"))
    assert balanced < 0.8 * even
    every = []
    for first, last in product(range(1, 20), repeat=2):
        try:
            every.append(max(stage_costs(HYBRID, layout(pp=pp, first=first, last=last), LENGTH, "none")))
        except ParallelError:
            continue
    assert len(every) > 10
    assert balanced == min(every)


def test_balanced_follows_the_length_of_rows_and_recomputation():
    parallel = layout(pp=2, split="balanced")
    small = replace(HYBRID, vocab_size=256)
    short, long = (with_split(small, parallel, length, "none") for length in (64, 8192))
    assert short.layers_in_first_stage < long.layers_in_first_stage, "attention is at the end"
    # The output layer is as much work as several layers, unless these are computed again, too.
    assert with_split(DENSE, parallel, 64, "none").layers_in_last_stage == 1
    assert with_split(DENSE, parallel, 64, "full").layers_in_last_stage == 2
    wide = replace(DENSE, vocab_size=8192)
    interleaved = with_split(wide, layout(pp=2, vp=2, split="balanced"), LENGTH, "none")
    assert (interleaved.layers_in_first_stage, interleaved.layers_in_last_stage) == (6, 2)


def test_a_model_without_a_difference_is_split_evenly():
    flat = replace(DENSE, vocab_size=8)
    assert with_split(flat, layout(pp=4, split="balanced"), LENGTH, "none").layers_per_stage(8) == [
        2,
        2,
        2,
        2,
    ]


@pytest.mark.parametrize(
    "stage",
    [Train(HYBRID, "shoebox-mcs", batch=BatchConfig(64, 1, 8)), Reinforce(HYBRID, context_length=64)],
    ids=["train", "rl"],
)
def test_a_split_is_no_identity_and_the_plan_shows_it(stage):
    two = apply_overrides(stage, {"parallel.pipeline_model_parallel_size": 2})
    assert two.remarks() == []
    balanced = apply_overrides(two, {"parallel.split": "balanced"})
    given = apply_overrides(two, {"parallel.layers_in_first_stage": 15})
    assert balanced.fingerprint({}) == given.fingerprint({}) == stage.fingerprint({})
    (line,) = balanced.remarks()
    first = balanced.layout.layers_in_first_stage
    assert line.startswith(f"pipeline stages of {first}, {20 - first} layers; the largest has ")
    assert "15, 5 layers" in given.remarks()[0]


def test_memory_counts_the_layers_of_each_stage():
    def weights(**sizes):
        return training_memory(DENSE, layout(**sizes), Workload(64, recompute="full")).weights

    # Matrices and two norms.
    layer = 2 * (64 * 128 * 2 + 64 * 64 * 2 + 3 * 64 * 192 + 2 * 64)
    assert weights(pp=2, last=7) - weights(pp=2, last=6) == layer
