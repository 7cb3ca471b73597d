from __future__ import annotations

import json

import pyarrow
import pytest
from pyarrow import parquet

from megatron_prism.cli.main import main


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def prism(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["grade", *map(str, arguments)])
    return ended.value.code


def write(path, records):
    path.write_text("\n".join(json.dumps(each) for each in records) + "\n")
    return path


def test_verdicts_with_reasons_and_what_changed(tmp_path, capsys):
    records = [
        {
            "id": "a",
            "sample": 3,
            "kind": "math",
            "completion": r"\boxed{1/2}",
            "answer": "0.5",
            "correct": False,
        },
        {"id": "b", "kind": "choice", "completion": "nothing", "answer": "C", "benchmark": "gpqa"},
    ]
    out = tmp_path / "verdicts.jsonl"
    assert prism(write(tmp_path / "answers.jsonl", records), "--out", out, "--workers", 1) == 0
    first, second = lines(out)
    assert first == {
        **{"id": "a", "sample": 3, "kind": "math", "correct": True, "reason": "correct", "extracted": "1/2"},
        "before": False,
    }
    assert (second["correct"], second["reason"], second["published"]) == (False, "no_answer", False)
    said = capsys.readouterr().err
    assert "1 of 2 answers are correct (50.0 %)" in said
    assert "differ from those in the file: 1" in said
    assert "grader 2, math-verify" in said


def test_the_answers_of_an_evaluation_are_graded_again(tmp_path, capsys):
    columns = {
        "id": ["a", "b"],
        "sample": [0, 1],
        "completion": [r"\boxed{1/2}", "nothing"],
        "kind": ["math", "choice"],
        "answer": ["0.5", "C"],
        "benchmark": ["", ""],
        "correct": [False, None],
        "token_ids": [[1, 2], [3]],
    }
    file = tmp_path / "math.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    assert prism(file, "--workers", 1) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["id"], each["sample"], each["correct"]) for each in found] == [
        ("a", 0, True),
        ("b", 1, False),
    ]
    assert [each.get("before") for each in found] == [False, None]
    file.write_bytes(b"no parquet")
    assert prism(file) == 2
    assert "math.parquet: not a Parquet file" in capsys.readouterr().err


def test_answers_are_joined_with_problems_by_id(tmp_path, capsys):
    problem = {"id": "a", "domain": "math", "prompt": "x", "kind": "math", "answer": "7", "tests": []}
    (tmp_path / "suites").mkdir()
    write(tmp_path / "suites" / "math.jsonl", [problem])
    answers = write(tmp_path / "answers.jsonl", [{"id": "a", "completion": r"\boxed{7}", "answer": "8"}])
    assert prism(answers, "--problems", tmp_path / "suites") == 0
    assert json.loads(capsys.readouterr().out)["correct"] is True
    write(tmp_path / "answers.jsonl", [{"id": "b", "completion": r"\boxed{7}"}])
    assert prism(answers, "--problems", tmp_path / "suites") == 2
    assert "answers.jsonl:1: id 'b' is not among the problems" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"completion": "x", "answer": "7"}, "'kind' is missing"),
        ({"kind": "math", "answer": "7"}, "'completion' is missing"),
        ({"kind": "math", "completion": "x"}, "'answer' is missing"),
        ({"kind": "code", "completion": "x"}, "'tests' is missing"),
        ({"kind": "maths", "completion": "x", "answer": "7"}, "did you mean 'math'"),
        ({"kind": "math", "completion": 7, "answer": "7"}, "'completion' must be text"),
        ({"kind": "math", "completion": "x", "answer": "7", "benchmark": "amie"}, "did you mean 'aime'"),
    ],
)
def test_a_bad_record_is_one_line_and_leaves_no_file(tmp_path, capsys, record, said):
    out = tmp_path / "verdicts.jsonl"
    assert prism(write(tmp_path / "answers.jsonl", [record]), "--out", out) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "answers.jsonl:1" in error
    assert len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl"]
