"""`prism eval MODEL` from end to end on a tiny model, with a suite of the user's."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from pyarrow import parquet
from tiny_models import make_checkpoint

from megatron_prism.cli.eval_model import _show_scores, run_name
from megatron_prism.cli.main import main
from megatron_prism.data.tokenizer import Tokenizer, train_tokenizer

SUITE = """
name: sums
benchmarks:
  - name: addition
    file: sums.csv
    licence: ours
    columns: {id: id, question: question, answer: sum}
    kind: math
    prompt: "User: {question}\\nAssistant:"
    stop: "User:"
    samples: 2
    temperature: 0.8
    max_new_tokens: 4
"""


def prism_eval(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["eval", *map(str, arguments)])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder `model`, and a suite of four sums."""
    root = tmp_path_factory.mktemp("eval")
    hf = make_checkpoint("llama", root / "model", vocab_size=276, max_position_embeddings=96)
    train_tokenizer(["User: What is 1 + 2?\nAssistant: 3"] * 4, 276, hf)
    rows = "\n".join(f"q{n},What is {n} + {n}?,{2 * n}" for n in range(4))
    (root / "sums.csv").write_text(f"id,question,sum\n{rows}\n")
    (root / "sums.yaml").write_text(SUITE)
    return root


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    """The folder of an evaluation."""
    run = tmp_path_factory.mktemp("runs") / "first"
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(folder / "model"), "--suite", str(folder / "sums.yaml"), "--out", str(run)])
    assert ended.value.code == 0
    return run


def answers(out):
    return parquet.read_table(out / "evaluate" / "generations" / "addition.parquet").to_pylist()


def test_a_model_is_scored_on_the_users_suite(folder, out, capsys):
    scores = json.loads((out / "evaluate" / "scores.json").read_text())
    suite = scores["suites"]["addition"]
    assert (suite["problems"], suite["samples"], sum(list(suite["outcomes"].values())[:3])) == (4, 8, 8)
    assert scores["engine"] == "megatron"
    assert scores["sources"]["addition"]["source"]["licence"] == "ours"
    assert (out / "report" / "report.html").is_file()
    code, said, _ = prism_eval(
        capsys, folder / "model", "--suite", folder / "sums.yaml", "--out", out, "--json", "-"
    )
    assert code == 0
    assert {stage["state"] for stage in json.loads(said)["stages"]} == {"skipped"}
    _, said, _ = prism_eval(capsys, folder / "model", "--suite", folder / "sums.yaml", "--out", out)
    assert "4 x 2" in said
    assert f"prism eval show {out / 'evaluate'} --wrong addition 5" in " ".join(said.split())


def test_more_samples_keep_the_first_ones(folder, out, capsys):
    before = {(each["id"], each["sample"]): each for each in answers(out)}
    suite = ("--suite", folder / "sums.yaml", "--out", out)
    code, _, said = prism_eval(capsys, folder / "model", *suite, "--samples", 3)
    assert code == 0
    assert "8 of 12 completions are kept, 4 are sampled" in " ".join(said.split())
    after = {(each["id"], each["sample"]): each for each in answers(out)}
    assert len(after) == 12
    assert {place: after[place] for place in before} == before, "the seconds, too"
    code, _, said = prism_eval(capsys, folder / "model", *suite, "--samples", 3, "--regrade")
    assert "12 of 12 completions are kept, 0 are sampled" in " ".join(said.split())
    assert code == 0


def test_prompts_are_shown_as_they_are_sent(folder, out, capsys):
    code, said, _ = prism_eval(
        capsys,
        *(folder / "model", "--suite", folder / "sums.yaml", "--out", out),
        *("--show-prompt", 2, "--json", "-"),
    )
    assert code == 0
    first, second = json.loads(said)
    ids = Tokenizer.load(folder / "model").encode("User: What is 0 + 0?\nAssistant:")
    assert (first["prompt"], first["prompt_ids"]) == ("User: What is 0 + 0?\nAssistant:", ids)
    assert (first["stop"], first["samples"], first["temperature"]) == (["User:"], 2, 0.8)
    assert second["id"] == "q1"
    sent = {each["id"]: each["prompt_ids"] for each in answers(out)}
    assert sent["q0"] == ids


def test_long_contexts_and_overrides(folder, tmp_path, capsys):
    options = ("--suite", "long", "--limit", 1, "--out", tmp_path / "run", "--json", "-")
    tasks = ("ruler.tasks=[needle_single]", "ruler.lengths=[96]")
    code, said, _ = prism_eval(capsys, folder / "model", *options, *tasks)
    assert code == 0
    (ruler,) = [stage for stage in json.loads(said)["stages"] if stage["kind"] == "ruler"]
    assert list(ruler["metrics"]["suites"]) == ["ruler-96"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--suite: name what to evaluate"),
        (["--suite", "shobox"], "did you mean 'shoebox'"),
        (["--suite", "shoebox,shoebox"], "a suite is named twice"),
        (["--suite", "shoebox", "--samples", "0"], "--samples 0"),
        (["--suite", "shoebox", "--engine", "vlm"], "did you mean 'vllm'"),
        (["--suite", "shoebox", "--data", "x"], "--data x: must be BENCHMARK=FILE"),
        (["--suite", "shoebox", "--data", "x=y"], "'x' is not a benchmark"),
        (["--suite", "shoebox", "--option", "x"], "--option x: must be KEY=VALUE"),
        (["--suite", "long", "--benchmark", "math"], "no suite with benchmarks is evaluated"),
        (
            ["--suite", "general", "--show-prompt", "1"],
            "--show-prompt: shows the prompts of suites of problems",
        ),
        (["--suite", "general", "--regrade"], "--regrade: grades answers to suites of problems"),
        (["--suite", "shoebox", "evaluate.sampling.temprature=0"], "did you mean 'temperature'"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, capsys, words, said):
    code, _, error = prism_eval(capsys, folder / "model", *words, "--out", tmp_path / "run")
    assert (code, error.count("\n")) == (2, 1)
    assert said in error
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_exist_is_one_line(capsys):
    code, _, error = prism_eval(capsys, "no/model", "--suite", "shoebox")
    assert (code, error.count("\n")) == (2, 1)
    assert "no/model: no such folder" in error


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("http://localhost:8000/v1", "localhost-8000"),
        ("models/Granite 3.3/", "Granite-3.3"),
    ],
)
def test_the_run_folder_is_named_after_the_model(model, name):
    assert run_name(model) == name


def test_an_artifact_of_a_run_names_the_run(tmp_path):
    (tmp_path / "runs" / "shoebox").mkdir(parents=True)
    (tmp_path / "runs" / "shoebox" / "graph.json").write_text("{}")
    assert run_name(str(tmp_path / "runs" / "shoebox" / "extend")) == "shoebox-extend"


def test_a_leaderboard_is_shown_by_its_benchmarks_and_not_by_its_tasks(tmp_path, capsys):
    score = {"score": 0.61, "low": 0.5, "high": 0.7, "interval": "normal"}
    task = {"pass_rate": 0.3, "low": 0.2, "high": 0.4, "interval": "wilson", "problems": 9, "samples": 9}
    averages = {"leaderboard-v1": {**score, "benchmarks": {"arc": {**score, "score": 0.42}}}}
    metrics = {"suites": {"arc_challenge": task}, "averages": averages}
    _show_scores({"harness": SimpleNamespace(metrics=metrics)}, tmp_path, None)
    shown = capsys.readouterr().out
    assert "leaderboard-v1" in shown
    assert "42.0 (50.0 to 70.0)" in shown
    assert "arc_challenge" not in shown
    _show_scores({"harness": SimpleNamespace(metrics={"suites": {"arc_challenge": task}})}, tmp_path, None)
    assert "arc_challenge" in capsys.readouterr().out
