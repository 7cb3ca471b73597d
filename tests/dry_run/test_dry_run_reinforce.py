"""The deep dry run of reinforcement learning: layouts of many ranks, and the same bytes as a real update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import real_runs
from parallel_runs import layout
from tiny_rl import DENSE, HYBRID

from megatron_prism.models.families import FAMILIES, architecture_from_config, published_config
from megatron_prism.platform.held_memory import HeldMemory
from megatron_prism.platform.process_groups import session
from megatron_prism.rl.dry_run import buildable, dry_run_rank, ranks_of, texts
from megatron_prism.rl.rl_run import build_policy
from megatron_prism.rl.settings import LoopSettings, Objective
from megatron_prism.rl.stage import Reinforce

# The cache grows in steps of 64 tokens, so the longest text has as many.
LENGTH = 64
MODELS = {
    "dense": replace(DENSE, max_position_embeddings=LENGTH),
    "hybrid": replace(HYBRID, max_position_embeddings=LENGTH),
}
LOOP = LoopSettings(prompts_per_step=16, samples_per_prompt=2, reference_interval=1)
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2sp cp2 dp4": {"parallel": layout(tp=2, cp=2, dp=4, sp=True)},
    "pp2 tp2 dp8 padded": {"parallel": layout(pp=2, tp=2, dp=8), "packing": False, "micro_batch_size": 3},
    "pp4 dp4 recomputed": {"parallel": layout(pp=4, dp=4), "recompute": "full", "dtype": "bf16"},
    "minibatches, no reference": {
        "parallel": layout(dp=2),
        "loop": replace(LOOP, minibatches=2, reference_interval=0),
        "objective": Objective(kl_coefficient=0.0),
    },
    "sequence ratio": {"parallel": layout(cp=2), "objective": Objective(ratio="sequence")},
}


def config(kind: str, **changes: Any) -> Reinforce:
    fields = {
        "architecture": MODELS[kind],
        "context_length": LENGTH,
        "max_new_tokens": 16,
        "slots": 8,
        "loop": LOOP,
    }
    return buildable(Reinforce(**fields | changes))[0]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_under_every_kind_of_layout(kind, name):
    stage = config(kind, **LAYOUTS[name])
    for rank in {*ranks_of(stage), stage.world_size - 1}:
        report = dry_run_rank(stage, rank)
        # The cache of the real layers, against the planner's arithmetic.
        assert report.counted["cache"] == pytest.approx(report.planned["cache"])
        has_reference = bool(stage.objective.kl_coefficient)
        assert (report.counted["reference"] > 0) is has_reference
        if has_reference:
            assert report.counted["reference"] == pytest.approx(report.counted["weights"], rel=0.1)
        for part in ("weights", "gradients"):
            assert report.counted[part] == report.planned[part]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("changes", [{}, {"packing": False, "micro_batch_size": 2}, {"dtype": "bf16"}])
def test_the_bytes_are_those_of_a_real_update(kind, changes):
    stage = config(kind, **changes)
    found = dry_run_rank(stage, 0, gpu=False).counted
    with session(stage.parallel, 1):
        policy = build_policy(stage, stage.architecture.vocab_size)
        for parameter in policy.trainer.models[0].parameters():
            parameter.data.normal_(std=0.02)
        policy.copy_to_reference()
        batches = policy.micro_batches(texts(stage))
        policy.compute_reference_logprobs(batches)
        kept = [0]
        with HeldMemory() as memory:
            policy.trainer.models[0].register_forward_hook(lambda *_: kept.append(memory.bytes()))
            policy.update(batches, 1e-6, 1)
        parameters = list(policy.trainer.models[0].parameters())
        real = {
            "weights": real_runs.storages(parameters),
            "gradients": real_runs.storages([each.main_grad for each in parameters]),
            "reference": real_runs.storages(list(policy.reference[0].parameters())),
        }
    assert {name: found[name] for name in real} == real
    assert found["activations"] == pytest.approx(max(kept), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for family in FAMILIES.values() for name in family.published])
def test_published_models_on_128_ranks(name):
    architecture = architecture_from_config(published_config(name))
    # Tensor parallelism needs whole groups of a hybrid's heads, and Granite-4.0-H has one.
    one_group = architecture.is_hybrid and architecture.mamba_num_groups == 1
    parallel = layout(cp=8, dp=16) if one_group else layout(tp=8, dp=16, sp=True)
    length = min(16384, architecture.max_position_embeddings)
    stage = Reinforce(
        architecture=architecture,
        dtype="bf16",
        recompute="full",
        parallel=parallel,
        context_length=length,
        slots=64,
    )
    for rank in ranks_of(stage):
        report = dry_run_rank(buildable(stage)[0], rank)
        for part in ("weights", "gradients", "reference", "cache"):
            assert report.counted[part] == report.planned[part]
