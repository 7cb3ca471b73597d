"""The examples that are recipes: they run, overrides reach what they should, and a sweep shares its first stages."""

from __future__ import annotations

from pathlib import Path

from warm import python

from megatron_prism.data.mixture import Mixture
from megatron_prism.pipeline.node import locate
from megatron_prism.study.registry import load_recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = (
    "corpus.characters={web: 40000, retrieval: 40000, chat: 40000, math: 40000, code: 40000, code_reasoning: 40000, "
    "science: 40000}",
    "corpus.held_out_problems=40",
)


def test_a_recipe_of_ones_own_runs(tmp_path):
    small = ("base.validation_batches=1", "midtrain.validation_batches=1", "base.architecture.num_layers=1")
    ran = python(
        "-m", "megatron_prism", "run", EXAMPLES / "own_recipe.py", "steps=6", *SMALL, *small, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert list((tmp_path / "runs/own_recipe/export").rglob("*.safetensors"))
    assert (tmp_path / "runs/own_recipe/report/report.html").is_file()


def test_an_override_of_the_base_reaches_the_model_trained_from_it():
    graph = load_recipe(str(EXAMPLES / "own_recipe.py")).graph({"base.architecture.num_layers": 2})
    assert graph.node("midtrain").stage.architecture.num_layers == 2
    assert set(Mixture.load(str(EXAMPLES / "own_recipe.yaml")).weights) <= set(
        graph.node("corpus").stage.characters
    )
    assert len((EXAMPLES / "own_recipe.py").read_text().partition("MIXTURE =")[2].splitlines()) <= 40


def test_the_runs_of_a_sweep_differ_and_share_what_comes_before(tmp_path):
    recipe = load_recipe(str(EXAMPLES / "sweep.py"))
    graph = recipe.graph({"rates": "1e-3,3e-3", "seeds": 2})
    runs = {
        name: each.fingerprint
        for name, each in locate(graph.nodes.values(), tmp_path).items()
        if "lr" in name
    }
    assert list(runs) == ["lr1e-3_seed1", "lr1e-3_seed2", "lr3e-3_seed1", "lr3e-3_seed2"]
    assert len(set(runs.values())) == 4
    longer = locate(recipe.graph({"steps": 7}).nodes.values(), tmp_path)
    for name in ("corpus", "tokenizer", "tokens"):
        assert longer[name].fingerprint == locate(graph.nodes.values(), tmp_path)[name].fingerprint
