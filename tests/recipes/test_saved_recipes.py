"""Every recipe, written with --to-yaml and read with --from-yaml, has the same fingerprints; other paths win."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_prism.data.mixture import Mixture
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.node import locate
from megatron_prism.study.registry import list_recipes, load_recipe
from megatron_prism.study.saved_config import restore, save

EVERYTHING = {"long_context": True, "rl": True, "evaluate": True}
SETTINGS = {
    "default": {},
    "all phases": EVERYTHING,
    "128 GPUs": EVERYTHING | {"gpus": 128, "extension_gpus": 144, "mixture": "math", "seed": 7},
    "other choices": {
        **{"long_context": True, "extension": "attention", "rl": True, "rl_balance": "balanced"},
        **{"rl_mix": "mc", "rl_start": "midtrain", "method": "dapo"},
    },
    "overrides": {
        **{"midtrain.batch.sequence_length": 4096, "midtrain.steps": 7, "midtrain.schedule.warmup_steps": 1},
        "midtrain.parallel.data_parallel_size": 16,
    },
    "tiny": EVERYTHING | {"tiny": True},
}
SHOEBOX = {
    "default": {},
    "hybrid": {"model": "hybrid", "preset": "short", "variants": True, "processes": 1},
    "overrides": {"base.architecture.num_layers": 3, "extend.steps": 77, "midtrain.schedule.lr": 1e-3},
}


def fingerprints(graph, folder):
    return {name: each.fingerprint for name, each in locate(graph.nodes.values(), folder).items()}


def back_and_forth(name, values, folder):
    """The graph, and what comes back of it."""
    recipe = load_recipe(name)
    before = recipe.graph(values, planned=True)
    save(folder / "study.yaml", recipe, before)
    return before, restore(folder / "study.yaml", recipe, {}, planned=True)


@pytest.mark.parametrize("name", list_recipes())
def test_the_round_trip_keeps_every_fingerprint(name, tmp_path):
    """The next test does the same with every setting."""
    label = {"granite-4.0-h-micro": "other choices", "llama-3.1-8b": "overrides"}.get(name, "default")
    before, after = back_and_forth(name, (SHOEBOX if name == "shoebox" else SETTINGS)[label], tmp_path)
    assert fingerprints(after, tmp_path) == fingerprints(before, tmp_path)
    # What no fingerprint shows, such as the layout, comes back as well.
    assert {key: node.stage for key, node in after.nodes.items()} == {
        key: node.stage for key, node in before.nodes.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list_recipes())
def test_the_round_trip_keeps_every_fingerprint_with_every_setting(name, tmp_path):
    for values in (SHOEBOX if name == "shoebox" else SETTINGS).values():
        before, after = back_and_forth(name, values, tmp_path)
        assert fingerprints(after, tmp_path) == fingerprints(before, tmp_path)


@pytest.fixture
def study(tmp_path):
    """A file that was written where the weights and texts were, and these paths on another machine."""
    recipe = load_recipe("granite-3.3-8b")
    paths = {}
    for place in ("there", "here"):
        data = tmp_path / place / "data"
        data.mkdir(parents=True)
        (tmp_path / place / "model").mkdir()
        for source in Mixture.load("mc").weights:
            (data / f"{source}{'.jsonl' if place == 'there' else '.txt'}").write_text("text")
        (data / "prompts.jsonl").write_text("{}")
        paths[place] = {
            "checkpoint": str(tmp_path / place / "model"),
            "data": str(data),
            "prompts": str(data / "prompts.jsonl"),
        }
    file = tmp_path / "study.yaml"
    given = {"mixture": "mc", "rl": True, "midtrain.steps": 7, **paths["there"]}
    save(file, recipe, recipe.graph(given))
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    return recipe, file, paths["here"]


def test_paths_that_are_overridden_need_not_exist(study):
    recipe, file, here = study
    graph = restore(file, recipe, here)
    assert graph.node("import").stage.source == here["checkpoint"]
    sources = graph.node("corpus").stage.sources
    assert set(sources) == set(Mixture.load("mc").weights)
    assert all(Path(path).exists() and path.startswith(here["data"]) for path in sources.values())
    assert graph.node("prompts").stage.files == [str(Path(here["prompts"]).resolve())]
    # What the file says besides its paths still holds.
    assert graph.node("midtrain").stage.steps == 7


def test_a_path_that_is_not_overridden_must_exist(study):
    recipe, file, here = study
    with pytest.raises(ConfigError, match=rf"{file}: checkpoint=.*there/model: no such folder"):
        restore(file, recipe, {key: value for key, value in here.items() if key != "checkpoint"})
    with pytest.raises(ConfigError, match=r"data=.*: source 'dclm-edu' of mixture=mc is missing"):
        restore(file, recipe, {key: value for key, value in here.items() if key != "data"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("steps: 7\n", "steps: seven\n"), r"steps='seven': must be a whole number"),
        (
            lambda text: text.replace("steps: 7\n", "steps: -7\n"),
            r"steps=-7: must be a finite number greater",
        ),
        (lambda text: text.replace("steps: 7\n", "steps: 7\n      stepz: 7\n"), "unknown key 'stepz'"),
        (lambda text: text.replace("steps: 7\n", "steps: 7\n      steps: 8\n"), "'steps' stands twice"),
        (lambda text: text.replace("stages:", "stages:\n\t"), "line .*a tab"),
        (lambda text: "", "the file is empty"),
        (lambda text: text.replace("seed: 1\n", "seed: 1.5\n", 1), "seed=1.5 must be of type int"),
        (lambda text: text.replace("recipe: granite-3.3-8b\n", ""), "recipe"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(change, message, tmp_path):
    recipe, file = load_recipe("granite-3.3-8b"), tmp_path / "study.yaml"
    save(file, recipe, recipe.graph({"midtrain.steps": 7}, planned=True))
    text = file.read_text()
    assert change(text) != text
    file.write_text(change(text))
    with pytest.raises(ConfigError, match=message) as refused:
        restore(file, recipe, {}, planned=True)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)


def test_the_file_is_plain_yaml_without_anchors(tmp_path):
    recipe, file = load_recipe("llama-3.1-8b"), tmp_path / "study.yaml"
    save(file, recipe, recipe.graph(EVERYTHING, planned=True))
    assert not [token for token in yaml.scan(file.read_text()) if isinstance(token, yaml.AnchorToken)]
