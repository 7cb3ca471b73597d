from __future__ import annotations

import json
import random

import pytest

from megatron_prism.errors import DataError
from megatron_prism.verification.problems import Problem, load_suite, suite_names


def record(**changes):
    base = {
        "id": "m1",
        "domain": "math",
        "prompt": "User: 1+1?\nAssistant:",
        "kind": "math",
        "answer": "2",
        "tests": [],
    }
    base.update(changes)
    return {key: value for key, value in base.items() if value is not ...}


def write(folder, lines, name="math"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / f"{name}.jsonl").write_text(text + "\n")


def test_problems_load_in_order(tmp_path):
    write(tmp_path, [record(), "", record(id="m2", kind="choice", answer="C")])
    problems = load_suite(tmp_path, "math")
    assert problems[0] == Problem("m1", "math", "User: 1+1?\nAssistant:", "math", "2", [])
    assert [p.id for p in problems] == ["m1", "m2"]
    assert suite_names(tmp_path) == ["math"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{oops", ":2: not JSON"),
        ("[1]", ":2: a JSON object is needed, found list"),
        (record(id="x", answer=...), ":2: key 'answer' is missing"),
        (record(id="x", anwser="2"), ":2: unknown key 'anwser'; did you mean 'answer'?"),
        (record(id="x", answer=2), ":2: 'answer' must be text, found int"),
        (record(id="x", tests="assert"), ":2: 'tests' must be a list"),
        (record(id="x", kind="code", tests=["assert f("]), ":2: 'tests'[0]: not Python"),
        (record(id="x", kind="code", tests=[{"input": "1"}]), ":2: 'tests'[0]: key 'output' is missing"),
        (record(id="x", kind="maths"), ":2: kind 'maths' cannot be graded; did you mean 'math'?"),
        (record(id="x", prompt=""), ":2: 'prompt' is blank"),
        (record(id="x", kind="code", answer=""), ":2: 'tests' is empty"),
        (record(id="x", answer=" "), ":2: 'answer' is blank"),
        (record(), ":2: id 'm1' is already used on line 1"),
    ],
)
def test_bad_lines_name_file_line_and_key(tmp_path, line, said):
    write(tmp_path, [record(), line])
    with pytest.raises(DataError) as caught:
        load_suite(tmp_path, "math")
    assert said in str(caught.value)
    assert str(tmp_path / "math.jsonl") in str(caught.value)


def test_missing_empty_and_binary_files(tmp_path):
    write(tmp_path, [record()])
    with pytest.raises(DataError, match="did you mean 'math'"):
        load_suite(tmp_path, "maths")
    write(tmp_path, [""], "empty")
    with pytest.raises(DataError, match="contains no problems"):
        load_suite(tmp_path, "empty")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8 text"):
        load_suite(tmp_path, "binary")


def test_a_subset_is_nested_and_independent_of_the_files_order(tmp_path):
    records = [record(id=f"p{i}") for i in range(50)]
    write(tmp_path, records)
    small = load_suite(tmp_path, "math", 10)
    ids = [p.id for p in small]
    assert len(ids) == 10
    assert ids != [f"p{i}" for i in range(10)]
    assert set(ids) < {p.id for p in load_suite(tmp_path, "math", 20)}
    random.Random(1).shuffle(records)
    write(tmp_path, records)
    assert {p.id for p in load_suite(tmp_path, "math", 10)} == set(ids)
    assert len(load_suite(tmp_path, "math", 500)) == 50
