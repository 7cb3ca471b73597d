"""The search for layouts, and the times of reinforcement learning."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from megatron_prism.models.families import architecture_from_config, published_config
from megatron_prism.planning.gpu_profile import load_profile
from megatron_prism.planning.memory import training_memory
from megatron_prism.planning.sampling_time import Answers, sampling_seconds
from megatron_prism.planning.search import RESERVE, Found, Option, layouts
from megatron_prism.planning.step_time import step_time
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.planned import Lengths, reinforcement_step, search_reinforcement
from megatron_prism.rl.stage import Reinforce
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.planned import search_train, train_job, with_option
from megatron_prism.training.stage import Train

H100 = load_profile("h100")
GRANITE = architecture_from_config(published_config("ibm-granite/granite-3.3-8b-base"))
NEMOTRON = architecture_from_config(published_config("nvidia/Nemotron-H-8B-Base-8K"))
TRAIN = Train(GRANITE, "shoebox-mcs", dtype="bf16", batch=BatchConfig(8192, 1, 128))


@pytest.fixture(scope="module")
def found() -> Found:
    return search_train(TRAIN, 8, H100)


def test_what_is_found_fits_and_the_fastest_is_first(found):
    assert len(found.ranked) > 10
    speeds = [each.time.tokens_per_second for each in found.ranked]
    # Equal to a tenth of a percent counts as equal.
    assert all(later <= earlier * 1.002 for earlier, later in pairwise(speeds))
    for each in found.ranked[:10]:
        option: Option = each.option
        assert option.parallel.world_size == 8
        assert option.parallel.tensor_model_parallel_size <= 8
        job = train_job(with_option(TRAIN, option), H100)
        assert step_time(job).tokens_per_second == pytest.approx(each.time.tokens_per_second)
        memory = training_memory(job.architecture, job.parallel, job.work).total
        assert memory == each.memory.total <= H100.memory * (1 - RESERVE)


def test_every_option_is_ranked_or_refused_with_a_reason(found):
    from megatron_prism.training.planned import search_train as again

    refused = sum(each.count for each in found.refused.values())
    options = len(list(layouts(8, H100))) * 3 * 4
    assert len(found.ranked) + refused + found.untried == options
    assert any(reason.startswith("does not fit: needs N GB") for reason in found.refused)
    # The config's own words.
    assert any("cannot be divided into virtual_pipeline" in reason for reason in found.refused)
    assert [each.option for each in again(TRAIN, 8, H100).ranked] == [each.option for each in found.ranked]


def test_a_model_too_large_for_the_gpus_finds_nothing():
    nothing = search_train(TRAIN, 1, H100)
    assert not nothing.ranked
    assert nothing.smallest is not None
    assert nothing.smallest > H100.memory
    assert set(nothing.refused) == {"does not fit: needs N GB of N"}


def test_a_hybrid_is_refused_what_megatron_cannot_do():
    hybrid = search_train(replace(TRAIN, architecture=NEMOTRON), 4, H100)
    assert hybrid.ranked
    assert any("hybrid models have no virtual pipeline stages" in reason for reason in hybrid.refused)
    assert all(each.option.parallel.virtual_pipeline_model_parallel_size is None for each in hybrid.ranked)


def test_decoding_by_hand():
    """Weights once per token for all texts, and keys and values of each; the longest answer ends alone."""
    one = Answers(count=1, prompts=1, prompt_tokens=0, answer_tokens=2, longest=2, slots=1)
    weights = 2 * 8_170_848_256
    found = sampling_seconds(
        GRANITE, ParallelConfig(), replace(one, answer_tokens=10**6, longest=10**6), H100
    )
    keys = 40 * 2 * 8 * 128 * 2 * 500_000
    assert found["decoding"] == pytest.approx(10**6 * (weights + keys) / (3.35e12 * 0.8), rel=1e-3)
    # The longest answer of many: 100 steps for all, and 900 for one.
    many = Answers(count=4, prompts=1, prompt_tokens=0, answer_tokens=100, longest=1000, slots=4)
    full = sampling_seconds(GRANITE, ParallelConfig(), replace(many, longest=100), H100)["decoding"]
    tail = sampling_seconds(GRANITE, ParallelConfig(), many, H100)["decoding"] - full
    assert 8.5 < tail / full <= 9.001
    # Half as many slots take twice as long.
    half = sampling_seconds(GRANITE, ParallelConfig(), replace(many, slots=2), H100)["decoding"]
    assert half == pytest.approx(2 * full + tail, rel=0.01)


def test_a_step_of_reinforcement_learning_is_sampling_and_an_update():
    stage = Reinforce(
        GRANITE,
        dtype="bf16",
        recompute="full",
        slots=16,
        parallel=ParallelConfig(tensor_model_parallel_size=2, data_parallel_size=4, sequence_parallel=True),
    )
    step = reinforcement_step(stage, H100, Lengths())
    assert step.parts["decoding"] > step.seconds / 2
    assert step.parts["log-probabilities"] > 0
    more = reinforcement_step(replace(stage, slots=64), H100, Lengths())
    assert more.seconds < step.seconds
    plain = replace(stage, objective=replace(stage.objective, kl_coefficient=0.0))
    assert "log-probabilities" not in reinforcement_step(plain, H100, Lengths()).parts
    ranked = search_reinforcement(stage, 8, H100, Lengths()).ranked
    assert ranked[0].time.seconds <= step.seconds
