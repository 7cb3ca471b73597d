"""The grading settings of a stage."""

from __future__ import annotations

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.pipeline.config import apply_overrides
from megatron_prism.rl.check_prompts import CheckPrompts
from megatron_prism.rl.difficulty import Difficulty
from megatron_prism.verification.grade import GradeItem, grade_all
from megatron_prism.verification.sandbox.machine_speed import time_factor
from megatron_prism.verification.settings import GradingSettings


def test_the_pool_has_the_settings_of_the_stage():
    with GradingSettings(workers=1, timeout_seconds=30.0).open_pool() as pool:
        assert pool.timeout_seconds == 30.0 * time_factor()
        assert grade_all([GradeItem("choice", "(B)", "B")], pool)[0].correct
        assert len(pool.pids()) == 1


@pytest.mark.parametrize("stage", [Evaluate(), Difficulty(), CheckPrompts()], ids=lambda s: s.kind)
def test_only_the_number_of_workers_is_left_out_of_the_fingerprint(stage):
    before = stage.fingerprint({})
    assert apply_overrides(stage, {"grading.workers": 7}).fingerprint({}) == before
    for key, value in (("sandbox", "weak"), ("timeout_seconds", 9.0), ("memory_mib", 512)):
        assert apply_overrides(stage, {f"grading.{key}": value}).fingerprint({}) != before


@pytest.mark.parametrize(
    ("key", "value"), [("workers", 0), ("timeout_seconds", -1.0), ("memory_mib", 0), ("sandbox", "stong")]
)
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        apply_overrides(Evaluate(), {f"grading.{key}": value})
