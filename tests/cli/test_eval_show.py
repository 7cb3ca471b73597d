from __future__ import annotations

import json

import pytest
from kept_answers import write_answers

from megatron_prism.cli.main import main
from megatron_prism.generation.engine import Completion
from megatron_prism.verification.problems import Problem


def completion(text, finish="stop"):
    return Completion(text, [1, 2, 3], [-1.0] * 3, finish, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    problems = [
        Problem("one", "math", "User: 1 + 1?", "math", "2"),
        Problem("two", "math", "User: 2 + 2?", "math", "4"),
    ]
    answers = [
        [completion(r"So \boxed{2}"), completion(r"So \boxed{3}"), completion("It is", "length")],
        [completion(r"So \boxed{5}"), completion(r"So \boxed{4}"), completion(r"So \boxed{6} [bold]")],
    ]
    write_answers(out, "math", problems, answers)
    write_answers(
        out,
        "gpqa",
        [Problem("g", "science", "Q?", "choice", "C", [], "gpqa")],
        [[completion("It needs vitamin C")]],
    )
    return out


def show(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["eval", "show", *map(str, arguments)])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_wrong_answers_are_read_in_order_with_prompt_answer_and_reason(folder, capsys):
    code, said, _ = show(capsys, folder, "--wrong", "math", 3)
    assert code == 0
    heads = [line for line in said.splitlines() if line.startswith("────")]
    assert heads == [
        "──── math · one · sample 1 · not right",
        "──── math · one · sample 2 · not right",
        "──── math · two · sample 0 · not right",
    ]
    assert "User: 1 + 1?\n\ncompletion:\nSo \\boxed{3}\n" in said
    assert (
        "kind: math · answer: 2 · extracted: 3 · reason: wrong · finish_reason: stop · tokens: 3 · seconds: 0.5"
        in said
    )


def test_other_kinds_of_answers_and_json(folder, capsys):
    kinds = {"right": ["one/0", "two/1"], "truncated": ["one/2"], "disputed": ["g/0"]}
    for kind, wanted in kinds.items():
        suite = "gpqa" if kind == "disputed" else "math"
        _, said, _ = show(capsys, folder, f"--{kind}", suite, 9, "--json", "-")
        assert [f"{each['id']}/{each['sample']}" for each in json.loads(said)] == wanted
    _, said, _ = show(capsys, folder, "--problem", "two", "--json", "-")
    assert [each["completion"] for each in json.loads(said)][2] == r"So \boxed{6} [bold]"
    assert "math: no answer is failed" in show(capsys, folder, "--failed", "math", 1)[1]


def test_without_a_wish_the_answers_are_counted(folder, capsys):
    _, said, _ = show(capsys, folder, "--json", "-")
    counts = {row.pop("suite"): row for row in json.loads(said)}
    assert counts["math"] == {
        **{"answers": 6, "wrong": 4, "right": 2},
        **{"truncated": 1, "failed": 0, "disputed": 0},
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--wrong", "mth", 1], "did you mean 'math'"),
        (["--wrong", "math", 0], "--wrong 0"),
        (["--wrong", "math", "x"], "--wrong"),
        (["--problem", "three"], "no answers to a problem with this id"),
    ],
)
def test_a_mistake_is_one_line(folder, capsys, arguments, said):
    code, _, error = show(capsys, folder, *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert said in error


def test_a_folder_without_answers_is_named(tmp_path, capsys):
    for name in (tmp_path, "x" * 5000):
        code, _, error = show(capsys, name, "--wrong", "math", 1)
        assert (code, error.count("\n")) == (2, 1)
    assert "neither an evaluation" in error


def run_of(folder, root, *models):
    """A run folder whose evaluations of `models` are all the artifact `folder`."""
    stages = [{"folder": folder.name, "kind": "evaluation", "inputs": {"model": each}} for each in models]
    (root / "graph.json").write_text(json.dumps({"stages": stages}))
    (root / folder.name).symlink_to(folder)
    (folder / "problems.json").write_text("{}")
    return root


def test_a_run_folder_stands_for_its_evaluation(folder, tmp_path, capsys):
    alone = show(capsys, folder, "--wrong", "math", 3, "--json", "-")[1]
    run = run_of(folder, tmp_path, "base")
    for name in (run, f"{run}:base"):
        assert show(capsys, name, "--wrong", "math", 3, "--json", "-")[:2] == (0, alone)
    code, _, error = show(capsys, f"{run}:bas", "--wrong", "math", 3)
    assert (code, "did you mean 'base'" in error) == (2, True)


def test_a_run_that_scores_several_models_asks_for_one(folder, tmp_path, capsys):
    run = run_of(folder, tmp_path, "base", "extend")
    code, _, error = show(capsys, run, "--wrong", "math", 1)
    assert code == 2
    assert f"{run}:base, {run}:extend" in error
