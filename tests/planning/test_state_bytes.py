"""Bytes of weights, gradients and optimizer state: equal to what Megatron-Core's real modules and buffers hold."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_ranks import rank_of, stage_and_replica
from parallel_runs import HYBRID, layout

from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model, local_parameter_count
from megatron_prism.models.families import (
    FAMILIES,
    architecture_from_config,
    parameter_count,
    published_config,
)
from megatron_prism.planning.ddp_buffers import layout_buffer
from megatron_prism.planning.parameters import Parameter, count_parameters, stage_parameters
from megatron_prism.planning.state_bytes import StatePrecision, state_bytes
from megatron_prism.platform.cpu_seam import on_meta
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.precision import PrecisionSettings
from megatron_prism.training.trainable import check_trainable
from megatron_prism.training.trainer import Trainer

PUBLISHED = [name for family in FAMILIES.values() for name in family.published]
# Odd sizes, so that paddings of the vocabulary, of parameters and of buckets all occur.
DENSE = Architecture("granite", 97, 36, 8, 60, 12, 4, 6)
UNTIED = replace(DENSE, family="llama", tie_word_embeddings=False)
MODELS = {
    "tied": DENSE,
    "untied": UNTIED,
    "hybrid": HYBRID,
    "tied hybrid": replace(HYBRID, tie_word_embeddings=True),
}


def trainer(architecture: Architecture, parallel: ParallelConfig, drawn: dict[str, Any]) -> Trainer:
    return Trainer(
        architecture,
        parallel,
        BatchConfig(8, 1, parallel.data_parallel_size * parallel.pipeline_model_parallel_size),
        OptimizerSettings(),
        dtype=torch.bfloat16 if drawn["dtype"] == "bf16" else torch.float32,
        backend="torch",
        trainable=drawn["trainable"],
        kernels=KernelSettings(
            overlap_grad_reduce=drawn["bucket"] is not None,
            overlap_param_gather=False,
            bucket_size=drawn["bucket"],
        ),
        precision=PrecisionSettings(grad_reduce_in_fp32=drawn["fp32 gradients"]),
        initialize=False,
    )


def held(run: Trainer) -> tuple[int, int, int]:
    """Bytes of the weights, of the gradient buffers and of the optimizer's state, by the storages of the tensors."""
    weights, gradients, state = {}, {}, {}

    def add(found: dict[int, int], tensor: torch.Tensor) -> None:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    for chunk in run.models:
        for parameter in chunk.parameters():
            add(weights, parameter.data)
        for buffer in chunk.buffers:
            add(gradients, buffer.grad_data)
    for part in getattr(run.optimizer, "chained_optimizers", [run.optimizer]):
        if part.optimizer is None:
            continue
        for group in part.optimizer.param_groups:
            for main in group["params"]:
                main.grad = torch.zeros_like(main)
        # AdamW makes its moments in the first step.
        part.optimizer.step()
        for main, values in part.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                add(state, values[name])
            if main.untyped_storage().data_ptr() not in weights:
                add(state, main)
    return sum(weights.values()), sum(gradients.values()), sum(state.values())


def draw(rng: random.Random) -> dict[str, Any]:
    dtype = rng.choice(["bf16", "bf16", "fp32"])
    return {
        "model": rng.choice(list(MODELS)),
        "sizes": {
            "tp": rng.choice([1, 2, 4]),
            "pp": rng.choice([1, 2, 3]),
            "cp": rng.choice([1, 1, 2]),
            "dp": rng.choice([1, 2, 3, 8]),
            "vp": rng.choice([None, None, 2]),
            "first": rng.choice([None, None, 2, 4]),
        },
        "distributed": rng.random() < 0.75,
        "trainable": rng.choice(["all", "all", "attention"]),
        "dtype": dtype,
        "fp32 gradients": dtype == "fp32" or rng.random() < 0.6,
        "bucket": rng.choice([None, 3000, 9000]),
        "rank": rng.random(),
    }


def compare(drawn: dict[str, Any]) -> None:
    architecture = MODELS[drawn["model"]]
    parallel = replace(layout(**drawn["sizes"]), use_distributed_optimizer=drawn["distributed"])
    rank = int(drawn["rank"] * parallel.world_size)
    stage, replica = stage_and_replica(parallel, rank)
    with rank_of(parallel, rank):
        found = held(trainer(architecture, parallel, drawn))
    expected = state_bytes(
        architecture,
        parallel,
        stage,
        precision=StatePrecision.of(drawn["dtype"], drawn["fp32 gradients"]),
        trainable=drawn["trainable"],
        overlap=drawn["bucket"] is not None,
        bucket=drawn["bucket"],
        data_rank=replica,
    )
    assert found == (expected.weights, expected.gradients, expected.optimizer), (drawn, rank)


def test_thirty_ranks_of_random_layouts_hold_what_the_arithmetic_says():
    rng, seen = random.Random(8), []
    while len(seen) < 30:
        drawn = draw(rng)
        try:
            parallel = replace(layout(**drawn["sizes"]), use_distributed_optimizer=drawn["distributed"])
            check_trainable(drawn["trainable"], MODELS[drawn["model"]], parallel)
        except ParallelError:
            continue
        compare(drawn)
        seen.append(drawn)
    assert {drawn["model"] for drawn in seen} == set(MODELS)
    assert {drawn["trainable"] for drawn in seen} == {"all", "attention"}
    for name in ("tp", "pp", "cp", "dp", "vp", "first"):
        assert any(drawn["sizes"][name] not in (1, None) for drawn in seen), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_parameters_of_a_build(name):
    """Without memory, on the meta device: the last stage of a pipeline, with tensor parallelism where possible."""
    architecture = architecture_from_config(published_config(name))
    assert count_parameters(architecture) == parameter_count(architecture)
    tp = 1 if architecture.mamba_num_groups == 1 and architecture.is_hybrid else 8
    parallel = layout(tp=tp, pp=2)
    with rank_of(parallel, parallel.world_size - 1), on_meta():
        model = build_model(architecture, torch.bfloat16, parallel, backend="torch", initialize=False)
    (chunk,) = stage_parameters(architecture, parallel, 1)
    assert [each.numel() for each in model.parameters()] == [each.size for each in chunk]
    assert local_parameter_count(model) == sum(each.size for each in chunk)


def test_the_largest_shard_is_that_of_some_rank():
    parallel = layout(tp=2, pp=2, dp=3, cp=2)
    shards = [state_bytes(DENSE, parallel, 0, data_rank=rank).optimizer for rank in range(6)]
    assert state_bytes(DENSE, parallel, 0).optimizer == max(shards) > min(shards)
    # What the ranks own together is every parameter once, without the padding.
    assert sum(shards) == 12 * state_bytes(DENSE, parallel, 0).trained


def test_padding_by_hand():
    """In reverse order: b at 0..70, a at 128..228; with 3 ranks a bucket ends at a multiple of 384."""
    pieces = [Parameter("a", 100), Parameter("b", 70)]
    found = layout_buffer(pieces, ranks=3, distributed=True, bucket=None)
    assert (found.length, found.spans) == (384, ((0, 70), (128, 228)))
    # Rank 0 has 0..128, rank 1 has 128..256.
    assert [found.shard(rank, 3) for rank in range(3)] == [70, 100, 0]
    two = layout_buffer(pieces, ranks=3, distributed=True, bucket=50)
    assert two.bounds == ((0, 384), (384, 768))
    plain = layout_buffer(pieces, ranks=3, distributed=False, bucket=None)
    assert plain.length == 170
    tied = layout_buffer(
        [Parameter("a", 100, shared=True), Parameter("b", 70)], ranks=2, distributed=True, bucket=None
    )
    assert tied.bounds == ((0, 128), (128, 256))


def test_offloading_and_smaller_moments():
    kept = StatePrecision(main=4, moments=4, aware=True, gradient=2)
    whole = state_bytes(DENSE, layout(), 0, precision=kept)
    assert whole.optimizer == 8 * whole.trained
    assert (whole.update, whole.gradients) == (0, whole.weights)
    assert (
        state_bytes(DENSE, layout(), 0, precision=replace(kept, offloaded=0.5)).optimizer == 4 * whole.trained
    )
    # Without the precision-aware optimizer, bf16 gradients are copied to fp32 for the update.
    copied = state_bytes(DENSE, layout(), 0, precision=StatePrecision(gradient=2))
    assert copied.update == 4 * copied.trained
