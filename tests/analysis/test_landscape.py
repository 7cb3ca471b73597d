"""`prism analyze landscape` on three tiny models: against evaluations and merges of its points, and after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
import warm
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint

from megatron_prism.analysis import result
from megatron_prism.analysis.landscape.engine import LandscapeEngine
from megatron_prism.analysis.result import read_analysis
from megatron_prism.analysis.stages.landscape import AnalyzeLandscape
from megatron_prism.cli.main import main
from megatron_prism.data.tokenizer import train_tokenizer

SUITE = """
name: sums
benchmarks:
  - name: addition
    file: sums.csv
    licence: ours
    columns: {id: id, question: question, answer: sum}
    kind: short
    prompt: "User: {question}\\nAssistant:"
    samples: 2
    temperature: 0.8
    max_new_tokens: 5
"""
PLANE = ("--path-a", "0,1/3,1", "--path-b", "1", "--grid-alpha", "0,1", "--grid-beta", "0,-0.3")
# In the order in which they are evaluated: the path, and what the grid has besides.
POINTS = ["a0_b0", "a1over3_b0", "a1_b0", "a1_b1", "a1.3_b0", "a1.3_b1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hugging Face folders base, midtrain and rl, one of another size, and a suite of four sums."""
    root = tmp_path_factory.mktemp("landscape")
    base = make_checkpoint("llama", root / "base", vocab_size=276, max_position_embeddings=96)
    train_tokenizer(["User: What is 1 + 2?\nAssistant: 3"] * 4, 276, base)
    for seed, name in enumerate(("midtrain", "rl")):
        shutil.copytree(base, root / name)
        generator = torch.Generator().manual_seed(seed)
        moved = {
            key: tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
            for key, tensor in load_file(base / "model.safetensors").items()
        }
        save_file(moved, root / name / "model.safetensors", {"format": "pt"})
    make_checkpoint("llama", root / "other", vocab_size=276, max_position_embeddings=96, num_hidden_layers=2)
    rows = "\n".join(f"q{n},What is {n} + {n}?,{2 * n}" for n in range(4))
    (root / "sums.csv").write_text(f"id,question,sum\n{rows}\n")
    (root / "sums.yaml").write_text(SUITE)
    return root


def prism(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    return ended.value.code


def arguments(folder, out, *more, plane=PLANE):
    models = [folder / name for name in ("base", "midtrain", "rl")]
    return ["analyze", "landscape", *models, "--suite", folder / "sums.yaml", "--out", out, *plane, *more]


def tokens(folder):
    rows = parquet.read_table(folder / "generations" / "addition.parquet").to_pylist()
    return {(row["id"], row["sample"]): row["token_ids"] for row in rows}


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take most of the time of such small models, and one test looks at them."""
    monkeypatch.setattr(result, "save", lambda drawing, stem: None)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A landscape that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert prism(*arguments(folder, out)) == 0
    return out


def test_every_point_is_once_in_the_document_with_figures(whole):
    document = read_analysis(whole / "landscape", "landscape")
    assert [point["name"] for point in document["points"]] == POINTS
    assert [document["points"][place]["name"] for place in document["path"]] == POINTS[:4]
    assert document["grid"]["alpha"] == [0, 1]
    assert document["grid"]["beta"] == [0, -0.3]
    assert document["grid"]["points"] == [[2, 3], [4, 5]]
    assert sorted(path.name for path in (whole / "landscape" / "points").iterdir()) == sorted(POINTS)
    assert {path.name for path in (whole / "landscape" / "figures").iterdir()} == {
        f"{figure}.{ending}" for figure in ("path", "grid") for ending in ("pdf", "png", "svg")
    }
    assert not (whole / "landscape" / "resume").exists()
    assert (whole / "report" / "report.html").is_file()
    assert parquet.read_table(whole / "landscape" / "points.parquet").num_rows == len(POINTS)


def test_points_answer_as_evaluations_of_the_models_and_of_their_merge_do(folder, whole, tmp_path):
    models = [folder / name for name in ("midtrain", "rl")]
    merged = tmp_path / "merged"
    named = ["--base", folder / "base", "--model", f"{models[0]}=1.3", "--model", f"{models[1]}=1"]
    assert prism("merge", merged, *named, "--method", "interpolate") == 0
    for model, point in ((models[0], "a1_b0"), (merged, "a1.3_b1")):
        out = tmp_path / f"eval-{point}"
        assert prism("eval", model, "--suite", folder / "sums.yaml", "--out", out) == 0
        assert tokens(out / "evaluate") == tokens(whole / "landscape" / "points" / point)
    # Negative control: points differ from each other.
    assert tokens(whole / "landscape" / "points" / "a1_b0") != tokens(
        whole / "landscape" / "points" / "a1.3_b0"
    )


def killed_at_the_third_point(*arguments):
    honest, points = LandscapeEngine.at, []

    def at(self, point):
        points.append(point)
        if len(points) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, point)

    LandscapeEngine.at = at
    main(list(arguments))


def test_a_killed_landscape_goes_on_and_gives_the_same(folder, whole, tmp_path, monkeypatch, no_figures):
    out = tmp_path / "killed"
    child = warm.Child(killed_at_the_third_point, *map(str, arguments(folder, out)))
    assert child.wait(120) == -signal.SIGKILL, child.stderr[-2000:]
    (partial,) = (out / "artifacts").glob("analysis_landscape-*.partial")
    first = partial / "points" / POINTS[0]
    times = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    assert "by_problem.json" in times
    opened = []
    honest = LandscapeEngine.at
    monkeypatch.setattr(
        LandscapeEngine, "at", lambda self, point: opened.append(point.name) or honest(self, point)
    )
    assert prism(*arguments(folder, out)) == 0
    assert opened == POINTS[2:], "what was sampled before the kill is not sampled again"
    finished = out / "landscape" / "points"
    assert {path.name: path.stat().st_mtime_ns for path in (finished / POINTS[0]).iterdir()} == times
    for point in POINTS:
        assert tokens(finished / point) == tokens(whole / "landscape" / "points" / point)
    documents = [read_analysis(each / "landscape", "landscape") for each in (whole, out)]
    assert documents[0] == documents[1]
    # Done: nothing is evaluated a third time; other points take over what they share.
    opened.clear()
    assert prism(*arguments(folder, out)) == 0
    assert prism(*arguments(folder, out, "--no-grid", plane=("--path-a", "0,1/3", "--path-b", "1/4,1"))) == 0
    assert opened == ["a1_b0.25"]


def test_an_engine_that_loads_folders_answers_the_same_and_leaves_none(folder, whole, tmp_path, no_figures):
    out = tmp_path / "hf"
    plane = ("--path-a", "1/3", "--path-b", "1", "--no-grid")
    assert prism(*arguments(folder, out, "--engine", "hf", plane=plane)) == 0
    for point in ("a1over3_b0", "a1_b1"):
        assert tokens(out / "landscape" / "points" / point) == tokens(whole / "landscape" / "points" / point)
    assert not list(out.rglob("model.safetensors.index.json"))
    assert not list((out / "landscape").rglob("*.safetensors"))


def test_two_models_have_a_path_only(folder, tmp_path, capsys, no_figures):
    models = [folder / "base", folder / "midtrain"]
    options = ["--suite", folder / "sums.yaml", "--out", tmp_path / "run", "--path-a", "0,1", "--json", "-"]
    assert prism("analyze", "landscape", *models, *options) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == {"base": "base", "midtrain": "midtrain"}
    assert [point["model"] for point in document["points"]] == ["base", "midtrain"]
    assert document["grid"]["points"] == []


def test_what_rounding_does_to_points_between_is_said(folder, tmp_path):
    rounded = []
    for name in ("base", "midtrain"):
        shutil.copytree(folder / name, tmp_path / name)
        state = load_file(folder / name / "model.safetensors")
        save_file(
            {key: tensor.bfloat16() for key, tensor in state.items()}, tmp_path / name / "model.safetensors"
        )
        rounded.append(tmp_path / name)

    def said(models, **fields):
        return [
            each for each in AnalyzeLandscape(**fields)._check_models(models) if "config.json" not in each
        ]

    (remark,) = said(rounded)
    assert remark.startswith("points between models are rounded once to bfloat16")
    assert said(rounded, dtype="bf16") == []
    assert said([folder / "base", folder / "rl"]) == []
    (remark,) = said([folder / "base", rounded[1]])
    assert "is torch.bfloat16; the result keeps torch.float32" in remark


@pytest.mark.parametrize(
    ("models", "words", "said"),
    [
        (["base"], [], "1 models: give a base and a mid-trained model"),
        (["base", "base", "rl"], [], "a model is named twice"),
        (["base", "other", "rl"], [], "only models of one architecture can be merged"),
        (["base", "midtrain", "none"], [], "no such folder"),
        (["base", "midtrain", "rl"], ["--suite", "long"], "a landscape is evaluated on suites of problems"),
        (["base", "midtrain", "rl"], ["--engine", "openai"], "--engine openai: a server has one model"),
        (["base", "midtrain", "rl"], ["--path-a", "0,inf"], "path_a: 'inf' is not a finite number"),
        (["base", "midtrain", "rl"], ["--grid-alpha", "0,99"], "grid_alpha: 99 is beyond 10 times"),
        (["base", "midtrain"], ["--path-b", "1"], "path_b: two models have only the path between them"),
        (["base", "midtrain"], ["--grid"], "--grid: two models have only the path"),
        (["base", "midtrain", "rl"], ["--limit", "0"], "--limit 0"),
        (["base", "midtrain", "rl", "landscape.batchsize=3"], [], "batch_size"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, capsys, models, words, said):
    paths = [name if "=" in name else folder / name for name in models]
    suite = [] if "--suite" in words else ["--suite", folder / "sums.yaml"]
    assert prism("analyze", "landscape", *paths, *suite, *words, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_landscape_needs_suites(folder, capsys):
    assert prism("analyze", "landscape", folder / "base", folder / "rl") == 2
    assert "--suite: name what to evaluate" in capsys.readouterr().err
