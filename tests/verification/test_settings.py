"""The grading settings of a stage."""

from __future__ import annotations

import time

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


def test_programs_may_have_another_limit():
    """A program that needs longer than an answer may; an answer that needs longer is stopped."""
    slow = "```python\nimport time\ntime.sleep(1.2)\nprint(3)\n```"
    program = GradeItem("code", slow, tests=[{"input": "", "output": "3\n"}])
    for limit, reason in ((60.0, "correct"), (None, "timeout")):
        settings = GradingSettings(workers=1, timeout_seconds=0.5, sandbox="weak", program_seconds=limit)
        with settings.open_pool() as pool:
            assert grade_all([program], pool, sandbox="weak")[0].reason == reason
    with GradingSettings(workers=1, timeout_seconds=0.5, program_seconds=60.0).open_pool() as pool:
        # math-verify never ends on this one, so that the limit decides.
        tower = GradeItem("math", "\\boxed{9^{9^{9^{9}}}+x}", "x", benchmark="math500")
        before = time.monotonic()
        assert grade_all([tower], pool)[0].published is None
        assert time.monotonic() - before < 30


def test_older_runs_keep_their_fingerprints():
    assert GradingSettings().identity() == {
        "timeout_seconds": 5.0,
        "memory_mib": 2048,
        "sandbox": "strong",
        "stop_early": False,
    }


@pytest.mark.parametrize("stage", [Evaluate(), Difficulty(), CheckPrompts()], ids=lambda s: s.kind)
def test_only_the_number_of_workers_is_left_out_of_the_fingerprint(stage):
    before = stage.fingerprint({})
    assert apply_overrides(stage, {"grading.workers": 7}).fingerprint({}) == before
    for key, value in (
        ("sandbox", "weak"),
        ("timeout_seconds", 9.0),
        ("memory_mib", 512),
        ("program_seconds", 9.0),
    ):
        assert apply_overrides(stage, {f"grading.{key}": value}).fingerprint({}) != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workers", 0),
        ("timeout_seconds", -1.0),
        ("program_seconds", 0.0),
        ("memory_mib", 0),
        ("sandbox", "stong"),
    ],
)
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        apply_overrides(Evaluate(), {f"grading.{key}": value})
