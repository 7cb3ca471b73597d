"""The graph of the quickstart's recipe, without running it; `.ci/run` runs the short preset."""

from __future__ import annotations

import pytest

from megatron_prism.data.mixture import Mixture
from megatron_prism.errors import ConfigError
from megatron_prism.models.build import build_model, local_parameter_count
from megatron_prism.platform.process_groups import session
from megatron_prism.study.registry import load_recipe
from megatron_prism.study.small_models import MODELS

recipe = load_recipe("shoebox").function


@pytest.mark.parametrize("model", MODELS)
def test_the_models_have_one_to_two_million_parameters(model):
    with session():
        assert 1e6 <= local_parameter_count(build_model(MODELS[model])) <= 2e6


@pytest.mark.parametrize("model", MODELS)
def test_the_stages_and_their_inputs(model):
    graph = recipe(model=model)
    inputs = {name: {key: n.name for key, n in node.inputs.items()} for name, node in graph.nodes.items()}
    models = ["base", "midtrain", "merge", "extend"]
    # Ready stages start in this order: evaluation of the base before mid-training, and the longest chain first.
    assert list(inputs) == [
        *("corpus", "tokenizer", "tokens", "base", "evaluate_base", "ruler_base", "midtrain"),
        *("prompts", "difficulty", "mix", "followed", "rl_midtrain", "frontier", "rl_base"),
        *("evaluate_midtrain", "ruler_midtrain", "merge", "packed", "extend", "export"),
        *("evaluate_merge", "ruler_merge", "evaluate_extend", "ruler_extend"),
        *("evaluate_rl_base", "evaluate_rl_midtrain"),
        *(
            "weights",
            "direction",
            "spectrum",
            "cka",
            "weights_rl",
            "trajectory",
            "confidence",
            "landscape",
            "report",
        ),
    ]
    assert inputs["midtrain"] == {"tokens": "tokens", "tokenizer": "tokenizer", "init": "base"}
    assert inputs["merge"] == {"base": "base", "midtrain": "midtrain"}
    assert inputs["packed"] == {"tokens": "tokens"}
    assert inputs["extend"] == {"tokens": "packed", "tokenizer": "tokenizer", "init": "merge"}
    assert inputs["export"]["model"] == "extend"
    for name in models:
        assert inputs[f"evaluate_{name}"]["model"] == inputs[f"ruler_{name}"]["model"] == name
    # The mid-trained model decides which prompts are used; both runs get the same ones.
    assert inputs["difficulty"]["model"] == "midtrain"
    for start in ("midtrain", "base"):
        given = {"model": start, "prompts": "mix", "tracked": "followed", "corpus": "corpus"}
        assert inputs[f"rl_{start}"] == given | {"tokenizer": "tokenizer"}
        assert inputs[f"evaluate_rl_{start}"]["model"] == f"rl_{start}"
    assert inputs["frontier"] == {"rl": "rl_midtrain", "difficulty": "difficulty"}
    assert set(inputs["report"]) == set(inputs) - {"report"}


def test_the_analyses_compare_the_models_of_the_study():
    graph = recipe()
    inputs = {name: {key: n.name for key, n in node.inputs.items()} for name, node in graph.nodes.items()}
    assert list(inputs["weights"]) == ["base", "midtrain", "extend", "rl_midtrain", "rl_base"]
    assert list(inputs["direction"]) == ["base", "midtrain", "extend", "rl_midtrain"]
    for name in ("spectrum", "cka"):
        compared = {key: node for key, node in inputs[name].items() if key not in ("tokenizer", "corpus")}
        assert list(compared.items()) == [(each, each) for each in ("base", "midtrain", "rl_midtrain")]
    # The second transition of the paper's Table 12 begins with the mid-trained model.
    assert graph.nodes["weights_rl"].stage.base == graph.nodes["trajectory"].stage.start == "midtrain"
    assert graph.nodes["trajectory"].stage.trained == "rl_midtrain"
    assert graph.nodes["rl_midtrain"].stage.checkpoints.weights_every == 10
    assert inputs["confidence"] == {name: f"evaluate_{name}" for name in ("base", "midtrain", "rl_midtrain")}
    assert inputs["landscape"]["rl"] == "rl_midtrain"
    assert graph.nodes["landscape"].stage.sampling == graph.nodes["evaluate_base"].stage.sampling


def test_both_runs_of_reinforcement_learning_differ_only_in_their_start():
    nodes = recipe().nodes
    assert nodes["rl_midtrain"].stage == nodes["rl_base"].stage
    # As in the paper: sampled at temperature 1 from the whole distribution.
    sampling = nodes["difficulty"].stage.sampling
    assert (sampling.temperature, sampling.top_p, nodes["difficulty"].stage.samples) == (1.0, 1.0, 16)
    assert recipe(method="dapo").nodes["rl_midtrain"].stage.loop.dynamic_sampling
    with pytest.raises(ConfigError, match="variant='ppo' is not possible"):
        recipe(method="ppo")


def test_variants_are_the_other_rows_of_the_papers_table():
    nodes = recipe(variants=True).nodes
    assert set(nodes) - set(recipe().nodes) == {
        f"{kind}extend_{variant}"
        for kind in ("", "evaluate_", "ruler_")
        for variant in ("attention", "unmerged", "unmerged_attention")
    }
    trainable = {name: nodes[name].stage.trainable for name in nodes if name.startswith("extend")}
    assert {name for name, what in trainable.items() if what == "attention"} == {
        "extend_attention",
        "extend_unmerged_attention",
    }
    assert nodes["extend_unmerged"].inputs["init"].name == "midtrain"


def test_one_parameter_sets_the_sandbox_of_every_stage():
    modes = {
        mode: {
            node.stage.grading.sandbox
            for name, node in recipe(sandbox=mode).nodes.items()
            if hasattr(node.stage, "grading")
        }
        for mode in ("strong", "weak")
    }
    assert modes == {"strong": {"strong"}, "weak": {"weak"}}
    with pytest.raises(ConfigError, match="sandbox=none"):
        recipe(sandbox="none")


def test_mid_training_is_short_and_the_extension_four_times_as_long():
    nodes = recipe().nodes
    lengths = {name: nodes[name].stage.batch.sequence_length for name in ("base", "midtrain", "extend")}
    assert (
        lengths["extend"]
        == lengths["base"]
        == 4 * lengths["midtrain"]
        == max(nodes["ruler_base"].stage.lengths)
    )
    assert nodes["packed"].stage.sequence_length == lengths["extend"]
    assert nodes["merge"].stage.weights == {"base": 0.15, "midtrain": 0.85}
    assert nodes["extend"].stage.schedule.style == "exponential"
    tokens = {n: nodes[n].stage.batch.global_batch_size * lengths[n] * nodes[n].stage.steps for n in lengths}
    assert tokens["extend"] < 0.5 * tokens["midtrain"]


def test_base_and_midtrained_are_evaluated_in_the_same_way():
    nodes = recipe().nodes
    for kind in ("evaluate", "ruler"):
        assert nodes[f"{kind}_base"].stage == nodes[f"{kind}_midtrain"].stage == nodes[f"{kind}_extend"].stage


def test_the_base_sees_no_problem_and_mid_training_the_papers_shares():
    nodes = recipe().nodes
    assert set(Mixture.load(nodes["base"].stage.mixture).weights) == {"retrieval", "web", "code"}
    paper, here = Mixture.load("mcs").weights, Mixture.load(nodes["midtrain"].stage.mixture).weights
    math = sum(paper[name] for name in ("nemotron-math", "mot-math", "megamath-web-pro"))
    assert here["math"] == pytest.approx(math) == pytest.approx(0.37)
    assert here["web"] + here["retrieval"] == pytest.approx(paper["dclm-edu"])


def test_seed_and_preset_change_what_they_should():
    full, other, short = recipe(), recipe(seed=2), recipe(preset="short")
    assert full.nodes["corpus"].fingerprint == other.nodes["corpus"].fingerprint
    assert full.nodes["base"].fingerprint != other.nodes["base"].fingerprint
    assert short.nodes["midtrain"].stage.steps < full.nodes["midtrain"].stage.steps
    assert list(short.nodes) == list(full.nodes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"model": "dens"}, "dense"), ({"preset": "quick"}, "known: full, short"), ({"seed": -1}, "seed=-1")],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("shoebox").build(wrong)


def test_another_model_is_the_model_of_every_stage():
    graph = recipe(variants=True)
    graph.override({"base.architecture.num_layers": 3})
    layers = {
        name: node.stage.architecture.num_layers
        for name, node in graph.nodes.items()
        if hasattr(node.stage, "architecture")
    }
    assert len(layers) == 8
    assert set(layers.values()) == {3}
    # The rows of Table 7 are all extended with the same settings, on sequences of the packed length.
    graph.override({"extend.steps": 77, "packed.sequence_length": 256})
    rows = [node.stage for name, node in graph.nodes.items() if name.startswith("extend")]
    assert [(row.steps, row.batch.sequence_length) for row in rows] == [(77, 256)] * 4
    with pytest.raises(ConfigError, match=r"stage 'midtrain': architecture\.num_layers=2 contradicts"):
        recipe().override({"midtrain.architecture.num_layers": 2})


def test_every_stage_of_a_full_run_has_an_expected_time():
    """A stage without one would leave the run without an estimate of the time left."""
    graph = recipe(variants=True)
    assert set(graph.expected_seconds) == set(graph.nodes)
    assert all(seconds > 0 for seconds in graph.expected_seconds.values())
    assert (
        graph.expected_seconds["base"] > graph.expected_seconds["extend"] > graph.expected_seconds["export"]
    )
