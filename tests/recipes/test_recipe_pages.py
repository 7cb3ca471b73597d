"""`prism recipes [NAME]` and `prism run NAME --show`: what they say is what the recipes and models are."""

from __future__ import annotations

import inspect
import json
import re
from functools import cache
from pathlib import Path

import pytest

from megatron_prism.cli.main import main
from megatron_prism.platform.source_tree import ROOT
from megatron_prism.study.layouts import LayoutTable
from megatron_prism.study.model_recipe import PHASE_OF, PHASES, ModelRecipe
from megatron_prism.study.overview import stages_by_phase
from megatron_prism.study.registry import list_recipes, load_recipe

# Hugging Face's layers, and how many of them have attention or are Mamba, from the model cards.
CARDS = {
    "granite-3.3-8b": ("granite", "8.17 B", 40, 40, 0),
    "granite-4.0-h-micro": ("granitemoehybrid", "3.19 B", 40, 4, 36),
    "granite-4.0-micro": ("granitemoehybrid", "3.40 B", 40, 40, 0),
    "llama-3.1-8b": ("llama", "8.03 B", 32, 32, 0),
    "mistral-7b-v0.1": ("mistral", "7.24 B", 32, 32, 0),
    "mistral-small-24b": ("mistral", "23.57 B", 40, 40, 0),
    "nemotron-h-8b": ("nemotron_h", "8.10 B", 52, 4, 24),
}


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def rows(text):
    """The cells of every line of a table."""
    return [
        [cell.strip() for cell in line.strip("│\n").split("│")] for line in text.splitlines() if "│" in line
    ]


def test_the_list_has_size_layers_phases_and_gpus_in_120_columns(capsys):
    text = said(capsys, "recipes")
    found = {row[0]: row[1:] for row in rows(text)}
    assert set(found) == set(list_recipes())
    for name, card in CARDS.items():
        assert found[name][:5] == [str(each) for each in card]
        numbers = {number for _, number, _ in LayoutTable.load(name).entries}
        assert found[name][5] == " ".join(map(str, sorted(numbers)))
    *table, phases, _ = text.splitlines()
    assert max(len(line.rstrip()) for line in table) <= 120
    assert "long_context, rl, evaluate, analyze" in phases


def test_one_recipe_has_its_parameters_stages_files_and_layouts(capsys):
    text = said(capsys, "recipes", "nemotron-h-8b")
    assert (
        "nvidia/Nemotron-H-8B-Base-8K: nemotron_h, 8.10 B parameters, 52 layers (4 with attention, 24 Mamba)"
        in text
    )
    cells = {row[0]: row[1:] for row in rows(text)}
    assert cells["gpus"] == ["8", "of mid-training and RL; there are layouts for 8, 128"]
    assert cells["rl_mix"] == ["mcs", "needs rl: the domains of the prompts, mc, mcs"]
    assert cells["merge"] == ["merge", "long_context", "import, midtrain"]
    assert cells["rl_extend"][1] == "long_context rl"
    assert cells["midtrain"] == ["train", "always", "import, tokens"]
    for key in ("checkpoint", "data", "prompts"):
        assert f"needs {key}: " in text
    assert "codex" in text.split("data has these sources: ")[1]


def test_json_has_the_same(capsys, tmp_path):
    said(capsys, "recipes", "llama-3.1-8b", "--json", str(tmp_path / "one.json"))
    one = json.loads((tmp_path / "one.json").read_text())
    assert (one["parameters"], one["layers"]) == (8_030_261_248, 32)
    assert one["options"]["gpus"]["default"] == 8
    assert {"stage": "extend", "kind": "train", "with": "long_context"} in one["stages"]


def test_every_parameter_is_explained_there_and_on_the_page():
    known = set(inspect.signature(ModelRecipe.__call__).parameters) - {"self"}
    assert set(load_recipe("granite-3.3-8b").notes) == known
    assert set(load_recipe("shoebox").notes) == set(load_recipe("shoebox").parameters)
    page = (ROOT / "docs" / "recipes.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("| `")]
    assert {key for line in table for key in re.findall(r"`(\w+)`", line.split("|")[1])} == known


def test_what_a_parameter_needs_is_what_refuses_it_alone():
    notes = load_recipe("granite-3.3-8b").notes
    for key, (phase, _) in PHASE_OF.items():
        assert notes[key].startswith(f"needs {phase}")


def test_a_stage_has_the_fewest_phases_that_add_it():
    recipe = load_recipe("granite-3.3-8b")
    graph, phases = stages_by_phase(recipe)
    assert set(phases) == set(graph.nodes)

    @cache
    def names(chosen):
        return set(recipe.build(dict.fromkeys(chosen, True), planned=True).nodes)

    for name, reason in phases.items():
        chosen = frozenset([] if reason == "always" else reason.split())
        assert chosen <= set(PHASES)
        assert name in names(chosen)
        assert all(name not in names(chosen - {one}) for one in chosen)


def test_show_has_costs_and_each_architecture_once(capsys):
    text = said(capsys, "run", "granite-3.3-8b", "gpus=128", "long_context=true", "--show")
    cells = {row[0]: row[1:] for row in rows(text)}
    assert cells["extend"][:2] == ["merge, packed", "128 ranks, TP 4 SP PP 4 CP 8"]
    assert re.fullmatch(r"[\d,.]+ h, [\d,]+ GPU-h", cells["midtrain"][2])
    assert cells["merge"][2] == "-"
    assert text.count("architecture.hidden_size: 4096") == 1
    assert text.count("architecture: as in midtrain") == 4
    assert "global_batch_size: 128" in text
    assert "a real run also needs: checkpoint=, data=" in text


BROKEN = {
    "def recipe(:\n  pass\n": "broken.py, line 1: this is not valid Python (invalid syntax)",
    "import nowhere\n": "broken.py, line 1: ModuleNotFoundError: No module named 'nowhere'",
    "x = 1\ny = x / 0\n": "broken.py, line 2: ZeroDivisionError: division by zero",
    "def recipe():\n    raise KeyError('a')\n": "broken.py, line 2: KeyError: 'a'",
    "def recipe():\n    return [][3]\n": "broken.py, line 2: IndexError: list index out of range",
    "def recipe():\n    return 3\n": "recipe() must return a Graph, not int",
    "def recipe(x):\n    pass\n": "parameter 'x' of recipe() needs a default",
    "y = 1\n": "must define a function recipe(...)",
    "x = '\0'\n": "broken.py: this is not valid Python",
    "from megatron_prism.pipeline.graph import Graph\nfrom megatron_prism.report.stage import Report\n"
    "def recipe():\n    g = Graph('x')\n    g.add('a', Report())\n    g.add('a', Report())\n    return g\n": (
        "two stages are called 'a'; rename one"
    ),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_recipe_file_is_one_line(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["run", "broken.py", "--dry-run"])
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert BROKEN[text] in shown
    assert len(shown.strip().splitlines()) == 1


def test_a_recipe_of_this_package_runs_from_any_folder_by_its_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = str(ROOT / "recipes" / "granite_3_3_8b.py")
    assert "midtrain" in said(capsys, "run", path, "--dry-run")


def test_a_key_without_its_stage_names_the_stages(capsys):
    with pytest.raises(SystemExit):
        main(["run", "granite-3.3-8b", "rl=true", "steps=3", "--dry-run"])
    assert (
        "unknown key 'steps', which is one of a stage; set midtrain.steps (or that of rl_midtrain, rl_import)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=123"], "checkpoint=123 must be of type str, for example checkpoint=\"'123'\""),
        (["long_context=1"], "long_context=1 must be of type bool, for example long_context=false"),
        (["midtrain.architecture.family=grapite"], "'grapite' is not supported; supported: granite"),
        (
            ["long_context=true", "ruler_base.lengths=[999999]"],
            "stage 'ruler_base': lengths=[999999]: the model has 131072 positions; use one of at most 131072",
        ),
        (["checkpoint=nowhere"], "checkpoint=nowhere: no such folder"),
        (["checkpoint=pyproject.toml"], "checkpoint=pyproject.toml: no such folder"),
        (["data=pyproject.toml"], "data=pyproject.toml: source 'dclm-edu' of mixture=mcs is missing"),
        (["evaluate=true", "suites=reasonning"], "neither a suite nor a file; did you mean 'reasoning'?"),
        (["midtrain.parallel=3"], "parallel=3: is a group of keys; set one of them"),
        (["midtrain.steps.x=3"], "unknown key 'steps.x': 'steps' is a value and has no keys"),
        (["midtrain.stepz=3"], "stage 'midtrain': unknown key 'stepz'; did you mean 'steps'?"),
        (["--from", "midtran"], "has no stage 'midtran'; did you mean 'midtrain'?"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main(["run", "granite-3.3-8b", *arguments, "--dry-run"])
    shown = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert message in shown
    assert len(shown.splitlines()) == 1
