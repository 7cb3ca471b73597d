from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import pytest
from tokenizer_folders import byte_level, save

from megatron_prism.errors import ArtifactError, ConfigError, DataError
from megatron_prism.evaluation.stage import Evaluate, read_samples, read_scores
from megatron_prism.evaluation.suite import evaluate
from megatron_prism.generation.engine import Completion, SamplingParams
from megatron_prism.generation.open_engine import OPENERS
from megatron_prism.pipeline.artifact import Artifact, Receipt, seal
from megatron_prism.pipeline.config import apply_overrides, from_mapping, to_mapping
from megatron_prism.verification.problems import Problem
from megatron_prism.verification.settings import GradingSettings


class ScriptedEngine:
    """An `Engine` with a table from prompts to answers, so every score is known in advance."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = answers
        self.seen: list[SamplingParams] = []

    def generate(self, prompts, params, *, samples=1, progress=lambda finished: None):
        self.seen.append(params)
        made = []
        for prompt in prompts:
            texts = [self.answers[prompt][i % len(self.answers[prompt])] for i in range(samples)]
            made.append(
                [
                    Completion(t, list(range(len(t.split()))), [], "length" if "cut" in t else "stop")
                    for t in texts
                ]
            )
            progress(samples)
        return made


PROBLEMS = [
    Problem("a", "math", "A", "math", "2"),
    Problem("b", "math", "B", "math", "1/2"),
    Problem("c", "science", "C", "choice", "D"),
    Problem("d", "code", "D", "code", "", ["assert f() == 1"]),
]
ANSWERS = {
    "A": [r"<think>x</think> \boxed{2}", r"\boxed{3}"],
    "B": [r"\boxed{0.5}"],
    "C": ["it was cut"],
    "D": ["```python\ndef f(): return 1\n```", "```python\ndef f(): return 2\n```"],
}


@pytest.fixture(scope="module")
def pool():
    with GradingSettings(workers=1, timeout_seconds=30).open_pool() as made:
        yield made


def test_every_sample_is_graded_and_kept(pool):
    finished = []
    result = evaluate(
        ScriptedEngine(ANSWERS),
        PROBLEMS,
        SamplingParams(),
        samples=2,
        pool=pool,
        progress=finished.append,
        sandbox="weak",
    )
    assert result.correct() == [[True, False], [True, True], [False, False], [True, False]]
    assert sum(finished) == 8
    metrics = result.metrics(0.95)
    assert metrics["pass_rate"] == 0.5
    assert (metrics["problems"], metrics["samples"], metrics["truncated"]) == (4, 8, 0.25)
    assert metrics["interval"] == "wilson, effective sample size"
    assert metrics["pass_at_2"] == 0.75
    assert metrics["reasons"] == {"correct": 4, "no_answer": 2, "assertion": 1, "wrong": 1}
    assert metrics["low"] < 0.5 < metrics["high"]
    first = result.samples[0][0].record()
    assert (first["id"], first["prompt"], first["correct"], first["extracted"]) == ("a", "A", True, "2")
    assert first["tokens"] == 2


def test_an_engine_that_loses_completions_is_an_error(pool):
    class Lossy(ScriptedEngine):
        def generate(self, *args, **kwargs):
            return super().generate(*args, **kwargs)[:-1]

    with pytest.raises(RuntimeError, match="did not return 1 completions"):
        evaluate(Lossy(ANSWERS), PROBLEMS, SamplingParams(), samples=1, pool=pool)


def made_artifact(folder, kind, files):
    partial = folder.with_name(folder.name + ".partial")
    for name, text in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(text)
    partial.mkdir(parents=True, exist_ok=True)
    return seal(partial, folder, Receipt(kind, "f" * 64, kind, {}, {}))


@pytest.fixture
def inputs(tmp_path):
    lines = {p.id: json.dumps(p.__dict__) + "\n" for p in PROBLEMS}
    suites = {
        "problems/math.jsonl": lines["a"] + lines["b"],
        "problems/science.jsonl": lines["c"],
        "problems/code.jsonl": lines["d"],
    }
    return {
        "corpus": made_artifact(tmp_path / "corpus", "corpus", suites),
        "model": made_artifact(tmp_path / "model", "train", {"architecture.json": "{}"}),
        "tokenizer": Artifact(
            save(byte_level(), tmp_path / "tokenizer"), Receipt("tokenizer", "", "", {}, {})
        ),
    }


@pytest.fixture
def engine(monkeypatch):
    """Replaces the Megatron engine, so that the stage is tested without a model."""
    scripted = ScriptedEngine(ANSWERS)
    loaded = []

    @contextmanager
    def load(model_folder, tokenizer_folder, batch_size, text):
        loaded.append((model_folder, tokenizer_folder, batch_size))
        yield scripted

    monkeypatch.setitem(OPENERS, "megatron", load)
    scripted.loaded = loaded
    return scripted


def test_stage_writes_scores_samples_and_metrics(tmp_path, inputs, engine):
    out = tmp_path / "out"
    out.mkdir()
    metrics = Evaluate(batch_size=7, grading=GradingSettings(sandbox="weak")).run(inputs, out)
    assert {suite: m["pass_rate"] for suite, m in metrics["suites"].items()} == {
        "math": 1,
        "science": 0,
        "code": 1,
    }
    assert metrics["suites"]["math"]["interval"] == "wilson"
    assert metrics["engine"] == "megatron"
    assert metrics["grader"]["math-verify"].startswith("0.")
    assert metrics["grader"]["sandbox"] == "weak"
    assert read_scores(out) == json.loads(json.dumps(metrics))
    samples = list(read_samples(out))
    assert [(s["suite"], s["id"], s["correct"]) for s in samples] == [
        ("math", "a", True),
        ("math", "b", True),
        ("science", "c", False),
        ("code", "d", True),
    ]
    assert samples[2]["finish_reason"] == "length"
    assert engine.loaded == [(inputs["model"].path, inputs["tokenizer"].path, 7)]
    assert engine.seen[0].stop is None


def test_limit_and_odd_text(tmp_path, inputs, engine):
    engine.answers = {key: ["\ud800 \\boxed{D}"] for key in ANSWERS}
    metrics = Evaluate(suites=["science"], limit=1).run(inputs, tmp_path)
    assert metrics["suites"]["science"]["problems"] == 1
    assert metrics["suites"]["science"]["pass_rate"] == 1.0
    assert next(read_samples(tmp_path))["completion"] == "\ud800 \\boxed{D}"


def test_unknown_suite_is_refused_before_the_model_is_loaded(tmp_path, inputs, engine):
    with pytest.raises(DataError, match="did you mean 'math'"):
        Evaluate(suites=["mth"]).run(inputs, tmp_path)
    assert engine.loaded == []


@pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bwrap is not installed: apt-get install bubblewrap"
)
def test_programs_run_isolated_by_default(tmp_path, inputs, engine):
    metrics = Evaluate(suites=["code"]).run(inputs, tmp_path)
    assert metrics["suites"]["code"]["pass_rate"] == 1
    assert metrics["grader"]["sandbox"] == "strong"
    assert metrics["grader"]["bubblewrap"].startswith("0.")


def test_programs_are_refused_before_the_model_is_loaded_where_they_cannot_be_isolated(
    tmp_path, inputs, engine, no_bubblewrap
):
    with pytest.raises(ConfigError, match=r"sandbox=strong.*bwrap is not on PATH.*sandbox=weak"):
        Evaluate(suites=["science", "code"]).run(inputs, tmp_path)
    assert engine.loaded == []
    # A suite without programs needs no sandbox.
    metrics = Evaluate(suites=["science"]).run(inputs, tmp_path)
    assert "sandbox" not in metrics["grader"]


def test_config_round_trip_and_overrides():
    stage = apply_overrides(Evaluate(), {"limit": 5, "sampling.temperature": 0.6, "suites": ["math"]})
    assert (stage.limit, stage.sampling.temperature, stage.sampling.stop) == (5, 0.6, None)
    assert from_mapping(Evaluate, to_mapping(stage)) == stage
    assert stage.identity() != Evaluate().identity()
    assert apply_overrides(stage, {"grading.workers": 4}).fingerprint({}) == stage.fingerprint({})
    assert apply_overrides(stage, {"grading.sandbox": "weak"}).fingerprint({}) != stage.fingerprint({})


@pytest.mark.parametrize(
    "wrong",
    [
        {"suites": []},
        {"suites": ["math", "math"]},
        {"limit": 0},
        {"samples_per_problem": 0},
        {"confidence": 1.0},
        {"batch_size": -1},
    ],
)
def test_invalid_configs_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Evaluate(**wrong)


def test_damaged_scores_and_samples_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"scores\.json: no such file"):
        read_scores(tmp_path)
    (tmp_path / "scores.json").write_text('{"suites": {"math": {}}}')
    with pytest.raises(ArtifactError, match="not the scores"):
        read_scores(tmp_path)
    (tmp_path / "samples.jsonl.zst").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match=r"samples\.jsonl\.zst: damaged zstd data"):
        list(read_samples(tmp_path))
