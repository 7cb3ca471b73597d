from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from megatron_prism.verification.grade import GradeItem, grade_all
from megatron_prism.verification.settings import GradingSettings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz_answers

    yield fuzz_answers
    sys.modules.pop("fuzz_answers", None)


def test_a_sample_of_the_fuzzed_answers_gets_verdicts_with_reasons(fuzz):
    draw = random.Random(5)
    rows = fuzz.seeds()
    items = [
        GradeItem(kind, fuzz.mutated(completion, draw), gold)
        for kind, completion, gold in draw.choices(rows, k=1500)
    ]
    with GradingSettings(workers=1, timeout_seconds=5.0).open_pool() as pool:
        grades = grade_all(items, pool)
    assert len(grades) == len(items)
    # The changes leave some answers right, and most wrong: a broken pool would give one reason to all.
    assert {"correct", "wrong", "no_answer"} <= {grade.reason for grade in grades}
    assert {grade.reason for grade in grades} <= {"correct", "wrong", "no_answer", "timeout"}
