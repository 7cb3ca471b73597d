from __future__ import annotations

import pytest

from megatron_prism.verification.grade import GradeItem, grade, grade_all
from megatron_prism.verification.settings import GradingSettings

SAME = [
    (r"\boxed{Mitochondria}", "mitochondria"),
    (r"\boxed{\text{Nitrogen  gas}.}", "nitrogen gas"),
    ("The answer is Sodium chloride.", "sodium chloride"),
    (r"<think>\boxed{iron}</think> \boxed{$\mathrm{Fe}$}", "Fe"),
    (r"\boxed{0.5}", "1/2"),
    (r"\boxed{1,000}", "1000"),
    (r"\boxed{2\times 10^3}", "2000"),
]
OTHERS = [
    (r"\boxed{ribosome}", "mitochondria"),
    (r"\boxed{x}", "y"),
    (r"\boxed{0.51}", "1/2"),
    (r"\boxed{9.8 m/s}", "9.7 m/s"),
    (r"<think>\boxed{iron}</think> \boxed{gold}", "iron"),
]


def test_text_is_compared_without_case_and_spaces_and_numbers_as_numbers():
    items = [GradeItem("short", completion, answer) for completion, answer in SAME + OTHERS]
    with GradingSettings(workers=1, timeout_seconds=10.0).open_pool() as pool:
        grades = grade_all(items, pool)
    assert [made.correct for made in grades] == [True] * len(SAME) + [False] * len(OTHERS)


@pytest.mark.parametrize("completion", ["", "no answer here", r"<think>\boxed{iron}</think>", r"\boxed{}"])
def test_no_answer_is_no_answer(completion):
    assert grade("short", completion, "iron").reason == "no_answer"
