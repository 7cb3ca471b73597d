"""A recipe as a YAML file and back: equal fingerprints; a changed value changes what depends on it, and no more."""

from __future__ import annotations

import pytest
import yaml

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.node import locate
from megatron_prism.study.registry import load_recipe
from megatron_prism.study.saved_config import restore, save


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("granite-3.3-8b")


@pytest.fixture
def file(recipe, tmp_path):
    path = tmp_path / "study.yaml"
    values = {"rl": True, "rl_mix": "mc", "midtrain.batch.sequence_length": 16384, "midtrain.steps": 7}
    save(path, recipe, recipe.graph(values, planned=True))
    return path


def prints(graph, tmp_path):
    return {name: each.fingerprint for name, each in locate(graph.nodes.values(), tmp_path).items()}


def edited(file, change):
    data = yaml.safe_load(file.read_text())
    change(data)
    file.write_text(yaml.safe_dump(data))
    return file


def test_the_round_trip_keeps_every_fingerprint(recipe, file, tmp_path):
    values = {"rl": True, "rl_mix": "mc", "midtrain.batch.sequence_length": 16384, "midtrain.steps": 7}
    before = recipe.graph(values, planned=True)
    after = restore(file, recipe, {}, planned=True)
    assert prints(after, tmp_path) == prints(before, tmp_path)
    assert after.node("midtrain").stage == before.node("midtrain").stage
    assert after.absent == before.absent


def test_one_changed_value_changes_its_stage_and_what_depends_on_it(recipe, file, tmp_path):
    before = prints(restore(file, recipe, {}, planned=True), tmp_path)
    edited(file, lambda data: data["stages"]["difficulty"]["config"].update(samples=8))
    graph = restore(file, recipe, {}, planned=True)
    after = prints(graph, tmp_path)
    assert {name for name in after if after[name] != before[name]} == graph.downstream("difficulty")


def test_overrides_win_and_what_follows_from_them_follows(recipe, file):
    graph = restore(
        file, recipe, {"batch.sequence_length": 32768, "seed": 5}, target="midtrain", planned=True
    )
    train = graph.node("midtrain").stage
    assert (train.batch.sequence_length, train.seed, train.steps) == (32768, 5, 7)
    long = recipe.graph({"midtrain.batch.sequence_length": 32768}, planned=True).node("midtrain").stage
    assert train.parallel == long.parallel


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(recipes="x"), "unknown key 'recipes'; did you mean 'recipe'"),
        (lambda data: data.update(recipe="shoebox"), "a file of recipe 'shoebox'"),
        (lambda data: data["stages"].pop("midtrain"), "only the recipe has midtrain"),
        (lambda data: data["stages"]["mix"]["inputs"].clear(), "stage 'mix' reads"),
        (lambda data: data["stages"]["mix"]["config"].update(domain=1), "unknown key 'domain'; did you mean"),
        (lambda data: data["parameters"].update(mixtur="mc"), "unknown parameter 'mixtur'; did you mean"),
        (lambda data: data.update(stages=3), "stages"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(change, message, recipe, file):
    with pytest.raises(ConfigError, match=message):
        restore(edited(file, change), recipe, {}, planned=True)


def test_a_real_run_refuses_before_anything_else(recipe, tmp_path):
    graph = recipe.graph({}, planned=True)
    assert list(graph.absent) == ["checkpoint", "data"]
    with pytest.raises(ConfigError, match="checkpoint: give the Hugging Face folder"):
        graph.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
