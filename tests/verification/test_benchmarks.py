from __future__ import annotations

import json
import logging

import pytest

from megatron_prism.errors import DataError
from megatron_prism.evaluation.plan import SuitePlan
from megatron_prism.evaluation.suite import GradedSample, SuiteResult
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.verification.grade import Grade, GradeItem, grade_all
from megatron_prism.verification.problems import Problem, read_suite
from megatron_prism.verification.settings import GradingSettings


def problem(**changes):
    base = {"id": "p", "domain": "math", "prompt": "1+1=", "kind": "math", "answer": "2", "tests": []}
    return base | changes


def write(folder, records):
    (folder / "s.jsonl").write_text("\n".join(json.dumps(each) for each in records) + "\n")


def test_both_verdicts_are_kept_and_a_failing_public_grader_takes_nothing():
    items = [
        # The public grader of GSM8K takes the last number, ours the stated answer.
        GradeItem("math", "The answer is 4. Let me check: 2+2=4, in 30 s.", "4", benchmark="gsm8k"),
        GradeItem("math", r"\boxed{4}", "4", benchmark="gsm8k"),
        GradeItem("choice", "The answer is (C). Options (A) and (B) fail.", "C", benchmark="gpqa"),
        GradeItem("short", r"\boxed{9.7}", "9.8", benchmark="scibench"),
        GradeItem("math", r"\boxed{\frac{1}{2^{99}}}", r"\frac{1}{2^{98}}", benchmark="math500"),
        # math-verify computes this tower; ours does not.
        GradeItem("math", r"\boxed{9^{9^{9}}}", "5", benchmark="aime"),
        GradeItem("math", r"\boxed{4}", "4"),
    ]
    with GradingSettings(workers=1, timeout_seconds=2.0).open_pool() as pool:
        grades = grade_all(items, pool)
    assert [each.correct for each in grades] == [True, True, True, True, False, False, True]
    assert [each.published for each in grades] == [False, True, False, True, True, None, None]


def test_the_disagreement_of_both_graders_is_a_figure():
    marked = Problem("p", "math", "1+1=", "math", "2", benchmark="gsm8k")
    verdicts = [(True, True), (True, False), (False, False), (False, None)]
    samples = [
        GradedSample(marked, index, Grade(ours, "wrong", published=public), 1, "stop")
        for index, (ours, public) in enumerate(verdicts)
    ]
    plan = SuitePlan("s", [marked], SamplingParams(), 3, [0])
    found = SuiteResult(plan, [samples]).metrics(0.95)["published"]
    assert found == {
        "benchmarks": ["gsm8k"],
        "pass_rate": 1 / 3,
        "disagreement": 1 / 3,
        "samples": 3,
        "failed": 1,
    }
    unmarked = GradedSample(Problem("q", "m", "x", "math", "2"), 0, Grade(True, "correct"), 1, "stop")
    assert "published" not in SuiteResult(plan, [[unmarked]]).metrics(0.95)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "choice", "answer": "2"}, "no_answer"),
        ({"kind": "choice", "answer": "carbon"}, "no_answer"),
        ({"answer": r"\frac{1}{"}, "no_answer"),
        ({"answer": "1000", "benchmark": "aime"}, "not of the form"),
        ({"answer": r"\frac12", "benchmark": "gsm8k"}, "not of the form"),
    ],
)
def test_a_reference_that_no_answer_reaches_is_dropped_and_named(tmp_path, caplog, changes, said):
    write(tmp_path, [problem(), problem(id="bad", **changes)])
    with caplog.at_level(logging.WARNING, logger="megatron_prism"):
        kept, dropped = read_suite(tmp_path, "s")
    assert [each.id for each in kept] == ["p"]
    assert list(dropped) == ["bad"]
    assert said in dropped["bad"]
    assert "s.jsonl:2" in caplog.text
    assert "1 of 2 problems are dropped" in caplog.text
    write(tmp_path, [problem(id="bad", **changes)])
    with pytest.raises(DataError, match="no problem can be graded"):
        read_suite(tmp_path, "s")


@pytest.mark.parametrize("answer", ["(C)", "C.", r"\text{C}", "c", "J"])
def test_odd_spellings_of_a_letter_are_kept(tmp_path, answer):
    write(tmp_path, [problem(kind="choice", answer=answer)])
    assert len(read_suite(tmp_path, "s")[0]) == 1


def test_an_unknown_benchmark_or_another_kind_is_an_error(tmp_path):
    write(tmp_path, [problem(benchmark="amie")])
    with pytest.raises(DataError, match="did you mean 'aime'"):
        read_suite(tmp_path, "s")
    write(tmp_path, [problem(benchmark="gpqa")])
    with pytest.raises(DataError, match="problems of kind 'choice', not 'math'"):
        read_suite(tmp_path, "s")
