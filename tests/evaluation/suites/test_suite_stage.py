"""The stage that makes suites: its artifact, its fingerprint, its advice, and the shoebox's problems."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_prism.data.shoebox.corpus import DEFAULT_CHARACTERS, ShoeboxCorpus
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.plan import SuiteSampling, read_plan
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.evaluation.suites.stage import BenchmarkFiles, benchmark_files
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.study.registry import load_recipe
from megatron_prism.verification.problems import load_suite, problem_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_suite.yaml"


def made(stage: BenchmarkFiles, out: Path) -> dict:
    out.mkdir()
    stage.run({}, out)
    return json.loads((out / "suites.json").read_text())


def shoebox_recipe() -> tuple[Evaluate, ShoeboxCorpus]:
    nodes = load_recipe("shoebox").build({}).nodes
    return nodes["evaluate_base"].stage, nodes["corpus"].stage


def check_plans(suites: Path, corpus: Path, evaluate: Evaluate) -> None:
    """The suites say what the recipe's evaluation does with its corpus."""
    for name in ("math", "science", "code"):
        plan = read_plan(suites, name, SuiteSampling(seed=evaluate.sampling.seed))
        samples = evaluate.samples_per_problem
        same = read_plan(corpus, name, evaluate.sampling, samples=samples, limit=evaluate.limit)
        assert len(plan.problems) == 200
        assert plan.problems == same.problems
        assert plan.params == same.params == SamplingParams(96, 0.6, 0.95, ["User:"], 1)
        assert (plan.samples, plan.seeds) == (same.samples, same.seeds)


def test_the_shoebox_has_the_problems_and_the_sampling_of_its_recipe(corpus, tmp_path):
    evaluate, made_by = shoebox_recipe()
    made(benchmark_files(["shoebox"]), tmp_path / "suites")
    (tmp_path / "whole/problems").mkdir(parents=True)
    for name in ("math", "science", "code"):
        held_out = [problem_of(each.record(), "") for each in made_by.held_out(name)]
        # A corpus that has been made has its first 60 as held-out problems, whatever its text is.
        assert held_out[:60] == load_suite(corpus.path / "problems", name)
        lines = "".join(json.dumps(each.record()) + "\n" for each in held_out)
        (tmp_path / f"whole/problems/{name}.jsonl").write_text(lines)
    check_plans(tmp_path / "suites", tmp_path / "whole", evaluate)


@pytest.mark.slow
def test_the_same_with_a_whole_corpus(tmp_path):
    evaluate, made_by = shoebox_recipe()
    made(benchmark_files(["shoebox"]), tmp_path / "suites")
    whole = tmp_path / "whole"
    whole.mkdir()
    replace(made_by, characters=dict.fromkeys(DEFAULT_CHARACTERS, 2_000), prompts=2).run({}, whole)
    check_plans(tmp_path / "suites", whole, evaluate)


def test_a_folder_with_the_name_of_a_packaged_suite_does_not_replace_it(tmp_path, monkeypatch):
    (tmp_path / "shoebox").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [each.name for each in benchmark_files(["shoebox"]).definitions()] == ["math", "science", "code"]
    with pytest.raises(ConfigError, match="no suites in this folder"):
        benchmark_files(["./shoebox"]).definitions()


def test_the_example_is_made(tmp_path, caplog):
    record = made(benchmark_files([str(EXAMPLE)]), tmp_path / "out")["school"]
    assert (record["problems"], record["rows"], record["selected"], record["group"]) == (3, 4, 3, "domain")
    assert record["sampling"] == {
        "max_new_tokens": 512,
        "temperature": 0.6,
        "top_p": 0.95,
        "stop": ["\nUser:"],
    }
    plan = read_plan(tmp_path / "out", "school", SuiteSampling())
    assert (plan.samples, plan.params.temperature, plan.problems[0].id) == (4, 0.6, "s1")
    assert "not the published set" not in caplog.text


def test_only_some_benchmarks_of_several_suites(tmp_path):
    records = made(benchmark_files([str(EXAMPLE), "shoebox"], only=["school", "math"]), tmp_path / "out")
    assert list(records) == ["school", "math"]
    assert load_suite(tmp_path / "out/problems", "school")[1].prompt == (
        "User: What is $\\frac{3}{4}$ of 96?\nPut your final answer within \\boxed{}.\n\nAssistant:"
    )


def exam(folder: Path, prompt: str = "Q: {question}") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "exam.yaml").write_text(
        f"benchmarks: [{{name: exam, file: exam.jsonl, kind: math, prompt: '{prompt}', problems: 2}}]\n"
    )
    (folder / "exam.jsonl").write_text('{"question": "1?", "answer": "1"}\n')
    return folder / "exam.yaml"


def test_short_contexts_bound_long_answers_only(tmp_path):
    stage = benchmark_files([str(EXAMPLE), "shoebox"], only=["school", "math"], most_new_tokens=200)
    assert {
        name: each["sampling"]["max_new_tokens"] for name, each in made(stage, tmp_path / "out").items()
    } == {
        "school": 200,
        "math": 96,
    }
    assert stage.fingerprint({}) != replace(stage, most_new_tokens=300).fingerprint({})
    # Without an effect it changes nothing.
    assert replace(stage, most_new_tokens=600).fingerprint({}) == replace(
        stage, most_new_tokens=None
    ).fingerprint({})


def test_the_fingerprint_follows_contents_not_places(tmp_path, caplog):
    def fingerprint(path: Path, **data: str) -> str:
        return BenchmarkFiles([str(path)], data).fingerprint({})

    here, there = exam(tmp_path / "here"), exam(tmp_path / "there")
    before = fingerprint(here)
    assert before == fingerprint(there)
    assert fingerprint(exam(tmp_path / "there", "P: {question}")) != before
    (tmp_path / "here/exam.jsonl").write_text('{"question": "1?", "answer": "2"}\n')
    assert fingerprint(here) != before
    assert fingerprint(here, exam=str(tmp_path / "there/exam.jsonl")) == before
    assert made(BenchmarkFiles([str(here)]), tmp_path / "out")["exam"]["expected"] == 2
    assert "has 1 problems, but its definition names 2" in caplog.text
    # A branch may move, which the fingerprint cannot know; a commit does not.
    assert benchmark_files(["reasoning"]).remarks() == []
    moving = tmp_path / "moving.yaml"
    moving.write_text("benchmarks: [{name: e, hub: a/b, files: c.csv, kind: math, prompt: '{q}'}]\n")
    assert [each[:24] for each in benchmark_files([str(moving)]).remarks()] == ["e: revision 'main' of a/"]
    assert benchmark_files([str(moving)], {"e": str(tmp_path / "x.csv")}).remarks() == []
    # A benchmark of the hub needs no network for its fingerprint.
    hub = benchmark_files(["reasoning"])
    assert hub.fingerprint({}) == benchmark_files(["reasoning"]).fingerprint({})
    assert hub.fingerprint({}) != benchmark_files(["reasoning"], only=["math500"]).fingerprint({})


def test_a_folder_of_suites_has_the_papers_sampling(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    line = {"id": "a", "domain": "math", "prompt": "1?", "kind": "math", "answer": "1", "tests": []}
    for name, answer in (("math_own", "1"), ("other", "\\frac{1}{")):
        rows = [line, line | {"id": "b", "answer": answer}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = made(benchmark_files([str(folder)]), tmp_path / "out")
    assert {name: (each["samples"], each["sampling"]["temperature"]) for name, each in records.items()} == {
        "math_own": (64, 0.6),
        "other": (3, 0.7),
    }
    assert (records["math_own"]["problems"], records["other"]["problems"]) == (2, 1)
    assert list(records["other"]["dropped"]) == ["b"]
    # The evaluation counts them, although they are no longer among the problems.
    assert list(read_plan(tmp_path / "out", "other", SuiteSampling()).dropped) == ["b"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"suites": ["reasonin"], "only": ["a"]}, "there is no such suite; did you mean 'reasoning'?"),
        ({"most_new_tokens": 0}, "most_new_tokens=0: must be"),
        ({"suites": []}, "suites=[]: name at least one suite"),
        (
            {"data": {"math50": "x.jsonl"}},
            "data: 'math50' is not a benchmark of ['reasoning']; did you mean 'math500'?",
        ),
        (
            {"only": ["aime27"]},
            "only: 'aime27' is not a benchmark of ['reasoning']; did you mean 'aime2",
        ),
        ({"suites": ["shoebox", "shoebox"]}, "benchmark 'math' occurs twice"),
        ({"data": {"math500": "nowhere.jsonl"}}, "nowhere.jsonl: no such file"),
        ({"suites": ["nowhere.yaml"]}, "nowhere.yaml: no such file"),
    ],
)
def test_a_mistake_is_known_before_anything_is_read(fields, message):
    with pytest.raises(ConfigError) as caught:
        BenchmarkFiles(**fields).fingerprint({})
    assert message in str(caught.value)
