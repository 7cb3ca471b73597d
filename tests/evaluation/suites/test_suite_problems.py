"""Rows into problems: the packaged benchmarks' forms, and faults that are named or counted, never scored."""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from megatron_prism.errors import DataError
from megatron_prism.evaluation.suites.problems import Found, check_count, read_problems
from megatron_prism.evaluation.suites.sources import open_sources
from megatron_prism.evaluation.suites.yaml_definition import load_suite_definition
from megatron_prism.verification.grade import grade
from megatron_prism.verification.problems import Problem
from megatron_prism.verification.sandbox.code_tests import parse_tests

EXAM = (
    "benchmarks:\n  - {name: exam, file: exam.jsonl, kind: math, rules: aime, prompt: 'Q: {question} A:', "
    "problems: 2%s}\n"
)
RIGHT = [{"id": "a", "question": "1?", "answer": "1"}, {"id": "b", "question": "2?", "answer": 2}]


def read(definition: Any, **data: str) -> tuple[list[Problem], Found]:
    found = Found()
    return list(read_problems(definition, open_sources([definition], data)[definition.name], found)), found


def exam(folder: Path, rows: list[dict[str, Any]], more: str = "") -> tuple[list[Problem], Found]:
    (folder / "exam.yaml").write_text(EXAM % more)
    (folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(load_suite_definition(folder / "exam.yaml").benchmarks[0])


def packaged(name: str) -> Any:
    suites = ("reasoning", "reasoning-variants")
    return next(
        each for suite in suites for each in load_suite_definition(suite).benchmarks if each.name == name
    )


def test_right_rows_become_problems(tmp_path):
    problems, found = exam(tmp_path, RIGHT)
    assert [(each.id, each.prompt, each.answer) for each in problems] == [
        ("a", "Q: 1? A:", "1"),
        ("b", "Q: 2? A:", "2"),
    ]
    assert (found.rows, found.chosen, found.dropped) == (2, 2, {})


def test_a_question_with_braces_is_not_filled_again(tmp_path):
    question = "$\\frac{answer}{2}$ and {answer} {nothing} {{id}} %s {0}"
    problems, _ = exam(tmp_path, [RIGHT[0] | {"question": question}])
    assert problems[0].prompt == f"Q: {question} A:"


def test_rows_without_ids_are_numbered(tmp_path):
    problems, _ = exam(tmp_path, [{"question": "1?", "answer": "1"}, {"question": "2?", "answer": "2"}])
    assert [each.id for each in problems] == ["1", "2"]


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({"answer": None, "id": "a"}, "", "exam.jsonl:2: id 'a' is already used at"),
        ({"question": ["2?"]}, "", "exam.jsonl:2: 'question' must be text or a number, found list"),
        ({"question": None}, "", "exam.jsonl:2: 'question' must be text or a number, found nothing"),
        ({"question": True}, "", "'question' must be text or a number, found bool"),
        ({"question": float("nan")}, "", "'question' must be text or a number, found float"),
        ({"id": " "}, "", "exam.jsonl:2: 'id' is blank"),
        (
            {},
            ", columns: {id: idd}",
            "exam.jsonl:1: no column 'idd' (columns: id), which benchmark 'exam' names at",
        ),
        ({}, ", columns: {answer: anser}", "no column 'anser' (columns: answer)"),
        ({}, ", where: {yeer: 2024}", "exam.jsonl:1: no column 'yeer'"),
        ({}, ", where: {id: c}", "none of 2 rows satisfies where"),
    ],
)
def test_what_the_user_has_to_mend_is_one_line(change, more, message, tmp_path):
    with pytest.raises(DataError) as caught:
        exam(tmp_path, [RIGHT[0], RIGHT[1] | change], more)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_with_an_unknown_column(tmp_path):
    (tmp_path / "exam.yaml").write_text((EXAM % "").replace("{question}", "{quesion}"))
    (tmp_path / "exam.jsonl").write_text(json.dumps(RIGHT[0]))
    with pytest.raises(DataError) as caught:
        read(load_suite_definition(tmp_path / "exam.yaml").benchmarks[0])
    assert (
        f"no column 'quesion', which benchmark 'exam' names at {tmp_path}/exam.yaml, line 2; did you mean 'question'?"
        in str(caught.value)
    )


def test_no_rows_and_the_wrong_number(tmp_path):
    with pytest.raises(DataError, match="no rows; benchmark 'exam' needs at least one"):
        exam(tmp_path, [])
    definition = load_suite_definition(tmp_path / "exam.yaml").benchmarks[0]
    assert check_count(definition, Found(rows=9, chosen=2)) == ""
    assert "has 3 problems, but its definition names 2: this is not the published set" in check_count(
        definition, Found(chosen=3)
    )


def test_what_cannot_be_graded_is_counted(tmp_path):
    """AIME's answers are integers; anything else cannot earn, and is not a wrong answer of the model."""
    rows = [
        *RIGHT,
        *({"id": f"c{n}", "question": "?", "answer": a} for n, a in enumerate(["x", None, "", 2.5])),
    ]
    problems, found = exam(tmp_path, rows)
    assert len(problems) == 2
    assert found.chosen == 6
    assert {name: fault.partition(" is not of")[0] for name, fault in found.dropped.items()} == {
        "c0": "its answer 'x'",
        "c1": "it has no answer",
        "c2": "it has no answer",
        "c3": "its answer '2.5'",
    }
    with pytest.raises(DataError, match="no problem can be graded; the first, 'c0': its answer 'x'"):
        exam(tmp_path, rows[2:])


def test_gpqa_as_evalchemy_asks_it(tmp_path):
    """The texts are what random.Random(42).shuffle makes of [right, wrong 1, wrong 2, wrong 3]."""
    header = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3,Record ID\n"
    (tmp_path / "gpqa.csv").write_text(header + "".join(f"q{n},r,w1,w2,w3,rec{n}\n" for n in range(40)))
    data = {name: str(tmp_path / "gpqa.csv") for name in ("gpqa_diamond", "gpqa_diamond_shuffled")}
    problems, _ = read(packaged("gpqa_diamond"), **data)
    assert problems[7].prompt == (
        "User: Return your final response within \\boxed{} and only include the letter choice (A, B, C, or D) as your "
        "final response.\nProblem: q7\nOptions: A) w2, B) w1, C) w3, D) r\nAnswer:\n\nAssistant:"
    )
    assert {each.answer for each in problems} == {"D"}
    assert (problems[7].id, problems[7].kind, problems[7].benchmark) == ("rec7", "choice", "gpqa")
    # The variant has another order for each problem; its letter is that of the right option.
    shuffled, _ = read(packaged("gpqa_diamond_shuffled"), **data)
    assert {each.answer for each in shuffled} == set("ABCD")
    assert all(f"{each.answer}) r" in each.prompt for each in shuffled)
    (tmp_path / "gpqa.csv").write_text(header + "q,r,w,r,x,rec\nq,r,w,v,x,rec2\n")
    assert read(packaged("gpqa_diamond"), **data)[1].dropped == {
        "rec": "its right option stands among the wrong ones too"
    }


class Planted:
    """What a pickle of a stranger may do: run a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def lcb_record(name: str, date: str, tests: list[Any], private: Any, metadata: str = "{}") -> dict[str, Any]:
    return {
        "question_id": name,
        "question_content": f"Add {name}.",
        "contest_date": date,
        "starter_code": "class Solution:\n    def add(self, x):\n" if "func_name" in metadata else "",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": packed(private),
        "metadata": metadata,
    }


def test_livecodebench(tmp_path):
    """Months, private tests in their packed form, one prompt for each form, and a pickle that is no text."""
    stdin = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
    function = [{"input": "1", "output": "2", "testtype": "functional"}]

    named = '{"func_name": "add"}'
    rows = [
        lcb_record("early", "2024-07-31T23:00:00", stdin, json.dumps(stdin)),
        lcb_record("in", "2024-08-01T00:00:00", stdin, json.dumps(stdin * 3)),
        lcb_record("fn", "2025-01-31T23:00:00", function, json.dumps(function * 2), named),
        lcb_record("evil", "2024-12-01T00:00:00", stdin, Planted(tmp_path / "ran")),
        lcb_record("late", "2025-02-01T00:00:00", stdin, json.dumps(stdin)),
    ]
    # The two files of a folder that stands in for the hub's five.
    definition = packaged("livecodebench")
    for name in definition.files:
        (tmp_path / name).write_text("")
    (tmp_path / "test3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    (tmp_path / "test5.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[2:]))
    problems, found = read(definition, livecodebench=str(tmp_path))
    assert [each.id for each in problems] == ["in", "fn"]
    assert (found.rows, found.chosen, list(found.dropped)) == (5, 3, ["evil"])
    assert "refers to posix.mkdir" in found.dropped["evil"]
    assert not (tmp_path / "ran").exists()
    # Negative control: an ordinary unpickler runs it.
    pickle.loads(zlib.decompress(base64.b64decode(rows[3]["private_test_cases"])))
    assert (tmp_path / "ran").exists()
    assert problems[0].prompt.endswith("Simply call the function after the definition.Add in.\n\nAssistant:")
    assert "```python\nclass Solution:\n    def add(self, x):\n\n```" in problems[1].prompt
    parsed = [parse_tests(each.tests) for each in problems]
    assert [(each.count, len(each.steps), len(each.cases)) for each in parsed] == [(4, 0, 4), (3, 3, 0)]
    assert parsed[0].cases[0].time_limit == 6.0
    os.remove(tmp_path / "test2.jsonl")
    with pytest.raises(
        Exception, match=r"test2.jsonl is not in this folder; put all files of the benchmark there"
    ):
        read(definition, livecodebench=str(tmp_path))


def codeforces(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "title": "Sum", "time_limit": 2.0, "description": "Add.", "input_format": "Two numbers.",
        "output_format": None, "interaction_format": None, "note": None, "editorial": "Use +.", "input_mode": "stdio",
        "examples": [{"input": "1 2", "output": "3"}], "official_tests": [{"input": "1 2\r\n", "output": "3\r\n"}],
        "official_tests_complete": True, "generated_checker": None,
    } | changes  # fmt: skip


def test_codeforces(tmp_path):
    rows = [
        codeforces("1/A"),
        codeforces("1/B", interaction_format="Ask."),
        codeforces("1/C", official_tests=[]),
        codeforces("1/D", input_mode="file"),
        codeforces("1/E", generated_checker="print(1)", official_tests_complete=False, note="Easy."),
        codeforces("1/F", generated_checker="print("),
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    data = {name: str(tmp_path / "test.parquet") for name in ("codeforces", "codeforces_editorial")}
    problems, found = read(packaged("codeforces"), **data)
    assert [each.id for each in problems] == ["1/A", "1/E"]
    assert (found.rows, found.chosen) == (6, 5)
    assert {name: fault.partition(" (")[0][:40] for name, fault in found.dropped.items()} == {
        "1/C": "it has no official tests",
        "1/D": "its program reads and writes files, not ",
        "1/F": "its tests[0]: 'checker' is not a Python ",
    }
    assert dict(found.notes) == {"not all official tests are public": 1, "a generated checker decides": 1}
    page = (
        "<html><body><h1>Sum</h1><div>Time limit per test: 2.0 s</div><h2>Description</h2><div>Add.</div>"
        "<h2>Input Format</h2><div>Two numbers.</div><h2>Output Format</h2><div></div><h2>Example</h2><h3>Input</h3>"
        "<div>1 2</div><h3>Output</h3><div>3</div>%s</body></html>\n\nAssistant:"
    )
    assert problems[0].prompt.endswith(page % "")
    assert problems[1].prompt.endswith(page % "<h2>Note</h2><div>Easy.</div>")
    leaked, _ = read(packaged("codeforces_editorial"), **data)
    assert leaked[0].prompt.endswith(page % "<h2>Editorial</h2><div>Use +.</div>")
    assert [parse_tests(each.tests).cases[0].checker for each in problems] == ["", "print(1)"]


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("{from: 9, before: 11}", "cd"),
        # As text, 10 is below 9.
        ("{from: '9'}", "cb"),
        ("[2, '10']", "ad"),
        ("10", "d"),
        ("{empty: false, before: 9}", "a"),
    ],
)
def test_conditions(condition, kept, tmp_path):
    rows = [
        RIGHT[0] | {"id": name, "level": level}
        for name, level in (("a", 2), ("b", "99"), ("c", 9), ("d", "10"))
    ]
    problems, found = exam(tmp_path, rows, f", where: {{level: {condition}}}")
    assert sorted(each.id for each in problems) == sorted(kept)
    assert (found.rows, found.chosen) == (4, len(kept))
    with pytest.raises(
        DataError, match=r"exam.jsonl:1: 'question' is '1\?', which cannot be compared with the number 3"
    ):
        exam(tmp_path, rows, ", where: {question: {from: 3}}")


def test_programs_are_judged_by_the_tests_that_were_read(tmp_path):
    """A right and a wrong program for each form: standard input, a method of the given name, and a checker."""
    stdin = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
    function = [{"input": "1\n[2]", "output": "[1, 2]", "testtype": "functional"}]
    checker = "import sys\nprint(int(open(sys.argv[3]).read().split() == ['4', '3']))\n"
    rows = [
        lcb_record(
            "s", "2024-09-01", stdin, json.dumps([{"input": "5\n", "output": "6\n", "testtype": "stdin"}])
        ),
        lcb_record("f", "2024-09-01", function, json.dumps(function), '{"func_name": "join"}'),
    ]
    (tmp_path / "lcb.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(
        pyarrow.Table.from_pylist([codeforces("1/A", generated_checker=checker)]), tmp_path / "cf.parquet"
    )
    read_in, join = read(packaged("livecodebench"), livecodebench=str(tmp_path / "lcb.jsonl"))[0]
    (checked,) = read(packaged("codeforces"), codeforces=str(tmp_path / "cf.parquet"))[0]
    for problem, right, wrong in (
        # The wrong one knows the public test only.
        (read_in, "print(int(input()) + 1)", "print(2)"),
        (join, "class Solution:\n    def join(self, x, y): return [x, *y]", "def join(x, y): return y"),
        # The checker wants another output than the official one.
        (checked, "print(4, 3)", "print(3)"),
    ):
        verdicts = [
            grade("code", f"```python\n{program}\n```", tests=problem.tests, sandbox="weak")
            for program in (right, wrong)
        ]
        assert [verdict.correct for verdict in verdicts] == [True, False], (problem.id, verdicts)


def test_a_limit_is_a_random_choice_by_the_id(tmp_path):
    rows = [{"id": f"p{n}", "question": "?", "answer": str(n)} for n in range(50)]
    ten, _ = exam(tmp_path, rows, ", limit: 10")
    twenty, _ = exam(tmp_path, random.Random(1).sample(rows, 50), ", limit: 20")
    assert {each.id for each in ten} < {each.id for each in twenty}
    assert [each.id for each in ten] != [f"p{n}" for n in range(10)]
