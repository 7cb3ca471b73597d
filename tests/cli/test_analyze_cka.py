"""`prism analyze cka` on the command line, on models whose similarity is planted."""

from __future__ import annotations

import gc
import itertools
import json
import re
import shutil
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from test_cli import one_line_error, prism
from tiny_models import CONFIGS, make_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from megatron_prism.analysis.cka import comparison
from megatron_prism.analysis.cka.bootstrap import draw_resamples
from megatron_prism.analysis.cka.comparison import Resampling, compare_states, describe_states
from megatron_prism.analysis.cka.pooled_states import open_model, points_of
from megatron_prism.analysis.cka.similarity import chance_cka, unbiased_cka
from megatron_prism.analysis.figures import inline_svg
from megatron_prism.analysis.stages.cka import AnalyzeCka
from megatron_prism.analysis.view import view
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import Artifact, Receipt

SAMPLES = 16
FEW = ("--samples", str(SAMPLES), "--resamples", "5", "--resample-size", "8")
DOCS = Path(__file__).parents[2] / "docs" / "analysis.md"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """A base; the same function with the features in another order; and the base with noise on its MLPs."""
    root = tmp_path_factory.mktemp("models")
    base = make_checkpoint("granite", root / "base")
    state = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(32, generator=generator)
    turned = {name: reordered(name, tensor, order) for name, tensor in state.items()}
    noisy = {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator) if ".mlp." in name else tensor
        for name, tensor in state.items()
    }
    for name, tensors in (("turned", turned), ("noisy", noisy)):
        shutil.copytree(base, root / name)
        save_file(
            {key: each.contiguous() for key, each in tensors.items()},
            root / name / "model.safetensors",
            {"format": "pt"},
        )
    return [str(root / name) for name in ("base", "turned", "noisy")]


def reordered(name, tensor, order):
    """The tensor of a model whose hidden features come in another order."""
    if tensor.dim() == 1:
        return tensor[order]
    return tensor[order] if "o_proj" in name or "down_proj" in name else tensor[:, order]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[str]:
    """Two sets: lines with blank and repeated ones, one line longer than what is read; and records with another key."""
    folder = tmp_path_factory.mktemp("texts")
    generator = np.random.default_rng(0)
    lines = ["".join(chr(33 + c) for c in generator.integers(0, 58, length)) for length in range(5, 23)]
    (folder / "lines.txt").write_text("\n".join([lines[0], "", "  ", *lines]) + "\n")
    records = [json.dumps({"question": line[::-1]}) for line in lines]
    (folder / "records.jsonl").write_text("\n".join(records) + "\n")
    return [f"web={folder / 'lines.txt'}", f"math={folder / 'records.jsonl'}#question"]


def by_definition(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def states_of(folder, lines, most):
    """`[texts, points, hidden]` in fp64 from transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for line in lines:
            ids = torch.tensor([tokenizer(line)["input_ids"][:most]])
            states = model(ids, output_hidden_states=True).hidden_states
            found.append(torch.stack([each[0].double().mean(dim=0) for each in states]))
    return torch.stack(found).numpy()


def run(models, texts, *more):
    named = [part for text in texts for part in ("--inputs", text)]
    return prism("analyze", "cka", *map(str, models), *named, *FEW, *more)


def test_tables_json_rows_and_figures(models, texts, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "cka.json"
    assert run(models, texts, "--max-tokens", "15", "--out", str(out), "--json", str(file)) == 0
    shown = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document == json.loads((out / "cka.json").read_text())
    assert [(pair["inputs"], pair["first"], pair["second"]) for pair in document["pairs"]] == [
        (name, *pair)
        for name in ("web", "math")
        for pair in itertools.combinations(("base", "turned", "noisy"), 2)
    ]
    lines = Path(texts[0].partition("=")[2]).read_text().split()[1 : SAMPLES + 1]
    states = {Path(model).name: states_of(model, lines, 15) for model in models}
    for pair in document["pairs"][:3]:
        points = [each for each in pair["points"] if each["index"] is not None]
        assert [each["name"] for each in points] == ["embedding", "layer 0", "layer 1", "final norm"]
        expected = [
            by_definition(states[pair["first"]][:, number], states[pair["second"]][:, number])
            for number in range(4)
        ]
        assert [each["cka"] for each in points] == pytest.approx(expected, abs=1e-6)
        assert pair["minimum"]["cka"] == pytest.approx(min(expected), abs=1e-6)
        assert pair["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
        both = [states[pair[which]][:, -1] for which in ("first", "second")]
        final = points[-1]
        assert final["unbiased"] == pytest.approx(unbiased_cka(*both), abs=1e-6)
        assert final["chance"] == pytest.approx(chance_cka(*both), abs=1e-6)
        assert final["one_minus_cka"] == pytest.approx(1 - expected[-1], abs=1e-6)
        halves = [by_definition(*(each[chosen] for each in both)) for chosen in draw_resamples(16, 8, 5, 0)]
        spread = [np.mean(halves), np.std(halves, ddof=1), *np.percentile(halves, [2.5, 97.5])]
        assert list(final["bootstrap"].values()) == pytest.approx(spread, abs=1e-6)
        if "noisy" in (pair["first"], pair["second"]):
            # The noise begins after the embedding.
            assert expected[0] == pytest.approx(1, abs=1e-6)
            assert pair["minimum"]["index"] == 1 + int(np.argmin(expected[1:]))
            assert pair["minimum"]["cka"] < 0.95
        else:
            assert pair["minimum"]["cka"] == pytest.approx(1, abs=1e-6)
            assert max(each["one_minus_cka"] for each in pair["points"]) < 1e-10
    for each in document["inputs"]:
        assert each["cut"]["base"] == sum(len(line) > 15 for line in lines)
        assert each["texts"] == SAMPLES
    assert document["summary"]["minimum"]["web"]["base – noisy"] < 0.95
    rows = parquet.read_table(out / "cka.parquet").to_pylist()
    assert len(rows) == 2 * 3 * 5
    for row in rows:
        pair = next(
            p for p in document["pairs"] if all(p[k] == row[k] for k in ("inputs", "first", "second"))
        )
        point = next(each for each in pair["points"] if each["name"] == row["name"])
        assert row["cka"] == point["cka"]
        assert row["bootstrap_std"] == point["bootstrap"]["std"]
    own = parquet.read_table(out / "states.parquet").to_pylist()
    assert len(own) == 2 * 3 * 5
    for row in own:
        if row["inputs"] == "web" and row["name"] == "final norm":
            variance = np.cov(states[row["model"]][:, -1].T)
            eigenvalues = np.linalg.eigvalsh(variance)
            dimension = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
            assert row["effective_dimension"] == pytest.approx(dimension, rel=1e-5)
            share = variance.diagonal().max() / variance.trace()
            assert row["largest_feature"] == pytest.approx(share, rel=1e-5)
            length = np.array([[1 / min(len(line), 15)] for line in lines])
            expected = by_definition(states[row["model"]][:, -1], length)
            assert row["length_cka"] == pytest.approx(expected, rel=1e-5)
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"cka_by_layer.{kind}" for kind in ("pdf", "png", "svg")
    }
    svg = (out / "figures" / "cka_by_layer.svg").read_text()
    assert all(word in svg for word in ("base – noisy", "web", "math", "1 − CKA"))
    assert "mathdefault" not in svg
    assert "base – noisy" in shown
    page = DOCS.read_text()
    section = page[page.index("## cka") :]
    for name in (*rows[0], *own[0], *document["settings"], *document["inputs"][0], *document["models"][0]):
        assert f"`{name}`" in section, name


def test_models_of_other_widths_and_in_bf16_are_compared(models, texts, tmp_path):
    wide = make_checkpoint("granite", tmp_path / "wide", torch.bfloat16, hidden_size=64)
    file = tmp_path / "cka.json"
    assert run([models[0], wide], texts[:1], "--dtype", "bf16", "--json", str(file)) == 0
    document = json.loads(file.read_text())
    assert [each["hidden_size"] for each in document["models"]] == [32, 64]
    assert document["settings"]["dtype"] == "bf16"
    assert document["settings"]["max_tokens"] == 128
    (pair,) = document["pairs"]
    # Random models of random characters share what the inputs share, and no more than that by much.
    assert 0.1 < pair["minimum"]["cka"] < 0.99


def test_models_that_only_transformers_knows_are_compared_one_at_a_time(texts, tmp_path, monkeypatch, capsys):
    folders, names = [], iter(["one", "other", "old"])
    for kind in ("qwen2", "qwen2", "gpt2"):
        folders.append(make_checkpoint("llama", tmp_path / next(names)))
        torch.manual_seed(len(folders))
        sizes = {**CONFIGS["llama"], "model_type": kind, "n_layer": 3, "n_head": 4, "n_embd": 32}
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes)).save_pretrained(folders[-1])
    norms, alive = [], []

    @contextmanager
    def watched(*arguments):
        alive.append([norm() is not None for norm in norms])
        with open_model(*arguments) as model:
            norms.append(weakref.ref(model.points.norm))
            yield model

    monkeypatch.setattr(comparison, "open_model", watched)
    gc.disable()
    try:
        assert run(folders[:2], texts[:1], "--json", str(tmp_path / "cka.json")) == 0
    finally:
        gc.enable()
    assert alive == [[], [False]]
    document = json.loads((tmp_path / "cka.json").read_text())
    assert [each["engine"] for each in document["models"]] == ["hf", "hf"]
    lines = Path(texts[0].partition("=")[2]).read_text().split()[1 : SAMPLES + 1]
    states = [states_of(folder, lines, 512) for folder in folders[:2]]
    final = next(each for each in document["pairs"][0]["points"] if each["name"] == "final norm")
    assert final["cka"] == pytest.approx(by_definition(*(each[:, -1] for each in states)), abs=1e-6)
    capsys.readouterr()
    assert run([folders[0], folders[2]], texts[:1]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search("error: .*old: GPT2Model: transformers' model has no 'layers' with", last)


def test_mistakes_are_one_line_before_a_model_is_loaded(models, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "open_model", lambda *arguments: pytest.fail("a model was loaded"))
    deep = make_checkpoint("granite", tmp_path / "deep", num_hidden_layers=4)
    few = tmp_path / "few.txt"
    few.write_text("AB\nAB\nCD\n")
    base, turned, _ = models
    for arguments, wanted in (
        (([base], texts), "give two or more models"),
        (([base, turned, base], texts), "given twice"),
        (([base, deep], texts), "deep: 4 layers, but .*base has 3"),
        (([base, turned], texts, "--max-tokens", "129"), "max_tokens=129: .* can read 128 tokens"),
        (
            ([base, turned], texts, "--resample-size", "16"),
            "resample_size=16: must be 4 or more, and less than",
        ),
        (([base, turned], texts, "--dtype", "fp16"), "fp16"),
        (([base, turned], [f"a={few}"]), r"few\.txt: 2 different texts \(1 repeated ones .*samples=16"),
        (([base, turned], [str(few)]), "write NAME=FILE"),
        (([base, turned], [texts[0], texts[0]]), "the name 'web' is used twice"),
        (([base, turned], [texts[1].replace("#question", "")]), "no key 'text'; keys here: question"),
        (([base, turned], [f"a={tmp_path / 'none.txt'}"]), "none.txt: no such file"),
        (
            ([base, tmp_path / "nothing"], texts),
            "nothing: no such folder; give the folder of a model or an art",
        ),
        (([base, "http://localhost:1/v1"], texts), "localhost:1/v1: a server does not give hidden states"),
        (([base, turned], texts, "--tokenizer", str(tmp_path)), "no tokenizer.json"),
    ):
        assert run(*arguments) == 2
        line = one_line_error(capsys)
        assert re.search(wanted, line), line


def test_a_weight_that_is_no_number_is_named(models, texts, tmp_path, capsys):
    for number, value in enumerate((float("nan"), float("inf"))):
        broken = Path(shutil.copytree(models[1], tmp_path / f"broken{number}"))
        state = load_file(broken / "model.safetensors")
        name = next(each for each in state if "layers.1." in each and each.endswith("norm.weight"))
        state[name][2] = value
        save_file(state, broken / "model.safetensors", {"format": "pt"})
        assert run([models[0], str(broken)], texts, "--out", str(tmp_path / "out")) == 2
        assert f"broken{number}: tensor '{name}' holds {value} in row 2" in one_line_error(capsys)
        assert not list(tmp_path.glob("out*"))


def test_what_is_not_defined_is_null_with_its_reason_and_can_be_shown():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(12, 4, 6, generator=generator)
    # So near that 1 - CKA is drawn, too.
    second = first + 0.01 * torch.randn(12, 4, 6, generator=generator)
    second[:, 1] = 3.5
    second[4, 3] = torch.nan
    (pair,) = compare_states({"a": first, "b": second}, points_of(2), Resampling(5, 6))
    reasons = [each["undefined"] for each in pair["points"]]
    assert reasons == [None, "b is the same for every input", None, "b has values that are not finite"]
    for each in pair["points"]:
        for key in ("cka", "one_minus_cka", "unbiased", "chance", "bootstrap"):
            assert (each[key] is None) == (each["undefined"] is not None)
    assert pair["minimum"]["name"] == "embedding"
    document = {
        "schema": "megatron_prism.analysis.cka/1",
        "models": [{"layers": 2}],
        "inputs": [{"name": "web", "texts": 12}],
        "settings": {"resamples": 5, "size": 6},
        "pairs": [{"inputs": "web", **pair}],
        "states": [
            {"inputs": "web", "model": name, "name": "final norm", **describe_states(states[:, 3], [5] * 12)}
            for name, states in (("a", first), ("b", second))
        ],
    }
    assert document["states"][0]["length_cka"] is None, "all texts are equally long"
    assert view(document).tables[2].rows[1] == ["web", "b", "–", "–", "–"]
    assert "–" in view(document).tables[1].rows[0]
    assert "a – b" in inline_svg(view(document).drawings["cka_by_layer"], "seed")
    json.dumps(document, allow_nan=False)


def test_the_stage_reads_the_texts_of_its_corpus(models, texts, tmp_path):
    shutil.copyfile(texts[0].partition("=")[2], tmp_path / "web.txt")
    receipt = Receipt("corpus", "f" * 64, "corpus", {}, {}, [], {}, {}, 0.0, "now")
    inputs = {Path(each).name: Artifact(Path(each), receipt) for each in models[1:]}
    inputs |= {"tokenizer": Artifact(Path(models[0]), receipt), "corpus": Artifact(tmp_path, receipt)}
    stage = AnalyzeCka({"web": "web.txt"}, samples=SAMPLES, resamples=3, resample_size=8)
    found = stage.analyze(inputs)
    assert found.summary["models"] == ["turned", "noisy"]
    assert found.values["inputs"][0]["source"] == "web.txt"
    assert found.summary["minimum"]["web"]["turned – noisy"] < 0.95
    del inputs["corpus"]
    with pytest.raises(ConfigError, match="texts: they are files of a corpus; add the input 'corpus'"):
        stage.analyze(inputs)
    with pytest.raises(ConfigError, match="resample_size=200: must be less than samples=200"):
        AnalyzeCka(resample_size=200)
