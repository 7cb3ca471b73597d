"""What the quickstart's recipe promises before it runs; `.ci/run` runs its short form whole."""

from __future__ import annotations

import pytest

from megatron_prism.data.mixture import Mixture
from megatron_prism.errors import ConfigError
from megatron_prism.models.build import build_model, local_parameter_count
from megatron_prism.platform.process_groups import session
from megatron_prism.recipes.registry import load_recipe
from megatron_prism.recipes.shoebox import MODELS, recipe


@pytest.mark.parametrize("model", MODELS)
def test_the_models_have_one_to_two_million_parameters(model):
    with session():
        assert 1e6 <= local_parameter_count(build_model(MODELS[model])) <= 2e6


@pytest.mark.parametrize("model", MODELS)
def test_the_stages_and_who_feeds_whom(model):
    graph = recipe(model)
    inputs = {name: {key: n.name for key, n in node.inputs.items()} for name, node in graph.nodes.items()}
    assert list(inputs) == [
        *("corpus", "tokenizer", "tokens", "base", "midtrain", "export"),
        *("evaluate_base", "evaluate_midtrain", "report"),
    ]
    assert inputs["midtrain"] == {"tokens": "tokens", "tokenizer": "tokenizer", "init": "base"}
    assert inputs["evaluate_base"]["model"] == "base"
    assert inputs["evaluate_midtrain"]["model"] == inputs["export"]["model"] == "midtrain"
    assert set(inputs["report"]) == set(inputs) - {"report"}


def test_base_and_midtrained_are_asked_the_same_questions_in_the_same_way():
    nodes = recipe().nodes
    assert nodes["evaluate_base"].stage == nodes["evaluate_midtrain"].stage


def test_the_base_sees_prose_and_code_only_and_mid_training_the_papers_shares():
    nodes = recipe().nodes
    assert set(Mixture.load(nodes["base"].stage.mixture).weights) == {"web", "code"}
    paper, here = Mixture.load("mcs").weights, Mixture.load(nodes["midtrain"].stage.mixture).weights
    math = sum(paper[name] for name in ("nemotron-math", "mot-math", "megamath-web-pro"))
    assert here["math"] == pytest.approx(math) == pytest.approx(0.37)
    assert here["web"] == pytest.approx(paper["dclm-edu"])


def test_seed_and_preset_change_what_they_should():
    full, other, short = recipe(), recipe(seed=2), recipe(preset="short")
    assert full.nodes["corpus"].fingerprint == other.nodes["corpus"].fingerprint
    assert full.nodes["base"].fingerprint != other.nodes["base"].fingerprint
    assert short.nodes["midtrain"].stage.steps < full.nodes["midtrain"].stage.steps
    assert list(short.nodes) == list(full.nodes)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"model": "dens"}, "dense"), ({"preset": "quick"}, "known: full, short"), ({"seed": -1}, "seed=-1")],
)
def test_wrong_parameters_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        load_recipe("shoebox").build(wrong)
