"""The grader against rows judged one by one: `right` is what a careful reader says; rows with null are left open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_prism.verification.grade import GradeItem, grade_all
from megatron_prism.verification.settings import GradingSettings

CASES = Path(__file__).parents[1] / "cases"


def rows(name):
    return [json.loads(line) for line in (CASES / f"{name}.jsonl").read_text().splitlines()]


def item(row):
    completion = row.get("completion", rf"\boxed{{{row.get('answer')}}}")
    kind = row["kind"] if row.get("kind") in ("choice", "short") else "math"
    return GradeItem(kind, completion, row["gold"])


@pytest.fixture(scope="module")
def pool():
    with GradingSettings(workers=1, timeout_seconds=20.0).open_pool() as made:
        yield made


@pytest.mark.parametrize("name", ["math", "completions", "choice_and_short"])
def test_verdicts_are_a_careful_readers(pool, name):
    judged = [row for row in rows(name) if row["right"] is not None]
    grades = grade_all([item(row) for row in judged], pool)
    differ = [
        (row, grade) for row, grade in zip(judged, grades, strict=True) if grade.correct != row["right"]
    ]
    # A grader that always says yes, or always no, would fail: both occur in each file.
    assert {row["right"] for row in judged} == {True, False}
    assert not [row for row, grade in differ if grade.correct], "answers that earn and must not"
    assert len(differ) <= len(judged) / 100, differ


def test_open_rows_get_a_verdict_with_a_reason(pool):
    every = [row for name in ("math", "completions", "choice_and_short") for row in rows(name)]
    left_open = [item(row) for row in every if row["right"] is None]
    grades = grade_all(left_open, pool)
    assert len(grades) == len(left_open) > 20
    assert {grade.reason for grade in grades} <= {"correct", "wrong", "no_answer"}
