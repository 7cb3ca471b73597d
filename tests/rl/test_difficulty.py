"""Numbers of correct answers: written as Parquet, and the same after an interruption."""

from __future__ import annotations

import json

import pyarrow.parquet as parquet
import pytest
from tiny_rl import artifact, make_inputs

from megatron_prism.errors import ArtifactError, ConfigError
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.rl.difficulty import STORE, Difficulty, read_difficulty
from megatron_prism.rl.rewards import RewardSettings
from megatron_prism.verification.settings import GradingSettings


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Prompts whose answer is a letter that a random model boxes now and then: the box is in the prompt."""
    folder = tmp_path_factory.mktemp("difficulty")
    given = make_inputs(folder, "dense")
    lines = [
        {"id": f"q{i}", "domain": "math", "prompt": prompt, "kind": "short", "answer": "A", "tests": []}
        for i, prompt in enumerate(["ABC", "B", "CAB", "DEAD", "BACK"])
    ]
    file = folder / "prompts" / "prompts" / "math.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return given | {"prompts": artifact(folder / "prompts")}


def stage(**changes):
    settings = {
        "samples": 4,
        "chunk": 2,
        "slots": 3,
        "grading": GradingSettings(workers=1, sandbox="weak"),
        "sampling": SamplingParams(max_new_tokens=6, seed=3),
        "rewards": RewardSettings(format_gate=False, unfinished=None),
    }
    return Difficulty(**settings | changes)


@pytest.fixture
def lenient(monkeypatch):
    """Counts an answer as correct if it begins with a capital letter, as those of a random model often do."""
    from megatron_prism.rl import rollout
    from megatron_prism.verification.grade import Grade

    asked = []

    def grade_all(items, pool, progress=None, sandbox="strong"):
        asked.append([item.completion for item in items])
        return [Grade("A" <= item.completion[:1] <= "Z", "correct") for item in items]

    monkeypatch.setattr(rollout, "grade_all", grade_all)
    return asked


def counts(folder):
    return {each.problem.id: (each.correct, each.samples) for each in read_difficulty(folder)}


def test_counts_and_a_resume_that_asks_only_what_is_missing(inputs, lenient, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    metrics = stage().run(inputs, whole)
    found = counts(whole)
    assert set(found) == {f"q{i}" for i in range(5)}
    assert {samples for _, samples in found.values()} == {4}
    assert len({correct for correct, _ in found.values()}) > 1
    assert sum(n for n in metrics["domains"]["math"].values()) == 5
    assert not (whole / "parts").exists()
    columns = set(parquet.read_table(whole / STORE).column_names)
    assert {
        "id",
        "domain",
        "prompt",
        "kind",
        "answer",
        "tests",
        "correct",
        "samples",
        "unfinished",
    } <= columns

    chunks = len(lenient)
    assert chunks == 3
    from megatron_prism.rl import difficulty

    honest, written = difficulty._write, []

    def stopping(file, groups):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file)
        honest(file, groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difficulty, "_write", stopping)
        with pytest.raises(KeyboardInterrupt):
            stage().run(inputs, broken)
    assert not (broken / STORE).exists()
    before = len(lenient)
    stage().run(inputs, broken)
    assert len(lenient) == before + 1
    assert counts(broken) == found


def test_answers_are_graded_by_the_real_pool(inputs, tmp_path):
    metrics = stage(limit=2).run(inputs, tmp_path)
    assert metrics["domains"] == {"math": {"0": 2}}
    assert metrics["grader"]["math-verify"]


def test_a_damaged_store_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"difficulty\.parquet: not readable"):
        read_difficulty(tmp_path)
    (tmp_path / STORE).write_text("no parquet")
    with pytest.raises(ArtifactError, match="run the stage again"):
        read_difficulty(tmp_path)


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="samples=0"):
        stage(samples=0)
    with pytest.raises(ConfigError, match="limit=0"):
        stage(limit=0)
