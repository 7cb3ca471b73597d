"""An evaluation on several processes: the same answers and scores as on one, also after a rank died."""

from __future__ import annotations

import json

import evaluation_layouts
import pytest
import warm
from evaluation_layouts import LAYOUTS, SAMPLES
from parallel_runs import layout, results_of
from tiny_rl import MODELS, PROMPTS, make_inputs

from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.generation.engine_config import EngineConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    for kind in MODELS:
        make_inputs(folder / kind, kind)
        (folder / kind / "corpus").mkdir()
        (folder / kind / "prompts" / "prompts").rename(folder / kind / "corpus" / "problems")
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    return results_of(evaluation_layouts.main, folder, (1, 2))


def same(found, whole):
    assert len(found["answers"]) == len(whole["answers"]) == len(PROMPTS) * SAMPLES
    for one, other in zip(found["answers"], whole["answers"], strict=True):
        assert one.pop("logprobs") == pytest.approx(other["logprobs"], abs=1e-4)
        assert one == {key: value for key, value in other.items() if key != "logprobs"}
    assert found["scores"] == whole["scores"]


@pytest.mark.parametrize("name", LAYOUTS[2])
def test_the_same_answers_as_one_process(runs, name):
    same(runs[name], runs[f"{name.partition('-')[0]}-one"])


@pytest.mark.slow
def test_the_same_answers_on_four_processes(runs, folder):
    for name, found in results_of(evaluation_layouts.main, folder, (4,)).items():
        same(found, runs[f"{name.partition('-')[0]}-one"])


@pytest.mark.parametrize("kind", MODELS)
def test_there_is_something_to_compare(runs, kind):
    answers = runs[f"{kind}-one"]["answers"]
    assert len({tuple(each["token_ids"]) for each in answers}) > len(answers) / 2
    assert {each["finish_reason"] for each in answers} == {"stop", "length"}


def test_the_rest_is_sampled_after_a_rank_died(runs, folder):
    with pytest.raises(AssertionError, match="rank 1 ended with 9"):
        warm.ranks(evaluation_layouts.die, folder, world=2)
    warm.ranks(evaluation_layouts.go_on, folder, world=1)
    found = json.loads((folder / "died.json").read_text())
    assert 3 <= found["kept"] < len(PROMPTS) * SAMPLES, (
        "the negative control: something was kept, and not all"
    )
    assert found["asked"] == len(PROMPTS) * SAMPLES - found["kept"]
    same(found, runs["dense-one"])


@pytest.mark.parametrize(
    ("engine", "parallel", "message"),
    [
        ("hf", layout(tp=2), "parallel: engine 'hf' samples in one process, and this layout has 2"),
        ("megatron", layout(cp=2), r"parallel.context_parallel_size=2: sampling has no use for it"),
        ("megatron", layout(pp=2, vp=2), r"parallel.virtual_pipeline_model_parallel_size=2"),
        ("megatron", layout(pp=2, split="balanced"), r"parallel.split=balanced"),
    ],
)
def test_layouts_that_do_not_sample(engine, parallel, message):
    with pytest.raises(ConfigError, match=message):
        Evaluate(engine=EngineConfig(engine), parallel=parallel)


def test_the_layout_does_not_change_the_fingerprint():
    assert Evaluate(parallel=layout(dp=2)).fingerprint({}) == Evaluate().fingerprint({})
    assert Evaluate(parallel=layout(tp=2, dp=2)).world_size == 4
