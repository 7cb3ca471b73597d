"""Scores compared with hand counts, coverage of intervals, and predictions from engines and files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from megatron_prism.data.ruler.generate import Plan
from megatron_prism.data.ruler.sample_folder import make_folder
from megatron_prism.data.ruler.samples import Sample, read_samples
from megatron_prism.data.ruler.sources import Sources
from megatron_prism.data.ruler.tasks import NOISE, named_tasks
from megatron_prism.data.ruler.word_lists import NOUNS
from megatron_prism.data.tokenizer import train_tokenizer
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.evaluation.ruler.predictions import check_positions, predict, predict_all, score_file
from megatron_prism.evaluation.ruler.scoring import (
    Scored,
    mean_interval,
    problems,
    score,
    suites,
    summary,
    task_mean_interval,
)
from megatron_prism.evaluation.ruler.stage import RulerEvaluate
from megatron_prism.evaluation.statistics.intervals import wilson_interval
from megatron_prism.generation.engine import Completion
from megatron_prism.pipeline.config import from_mapping, to_mapping

NEEDLES = Sample("t", 128, 0, 1, 9, 5, "prompt", ["123", "Blue", "456", "x-y"], "recall", [], "built in")
QUESTION = replace(NEEDLES, metric="any", answers=["The Eiffel Tower", "Paris"])


@pytest.mark.parametrize(
    ("sample", "prediction", "value"),
    [
        (NEEDLES, " 123, 456 and X-Y: blue", 1.0),
        (NEEDLES, "123", 0.25),
        (NEEDLES, "12 3 bl ue", 0.0),
        (NEEDLES, "", 0.0),
        (NEEDLES, "BLUE4567", 0.5),
        (QUESTION, "It is eiffel  tower, of course", 1.0),
        (QUESTION, "in PARIS.", 1.0),
        (QUESTION, "Lyon", 0.0),
        (QUESTION, "", 0.0),
        (replace(QUESTION, answers=["A"]), "Lyon", 0.0),
        (replace(NEEDLES, answers=["The Eiffel Tower"]), "eiffel tower", 0.0),
    ],
)
def test_scores_by_hand(sample, prediction, value):
    assert score(sample, prediction) == value


def test_intervals_by_kind():
    right = mean_interval([1.0] * 9 + [0.0])
    assert (right.mean, right.name) == (0.9, "wilson")
    assert (right.low, right.high) == wilson_interval(9, 10)
    shares = mean_interval([0.25, 0.5, 0.75, 1.0] * 10)
    assert shares.name == "bootstrap over samples"
    assert shares.low < 0.625 < shares.high
    sure = mean_interval([0.5] * 10)
    assert sure.low < 0.5 < sure.high


def test_a_mean_over_tasks_weighs_tasks_and_covers():
    generator = np.random.default_rng(1)
    truth = {"a": 0.9, "b": 0.5, "c": 0.2}
    covered = 0
    for seed in range(100):
        values = {task: generator.binomial(1, p, 60).astype(float).tolist() for task, p in truth.items()}
        found = task_mean_interval(values, 0.9, seed)
        covered += found.low <= np.mean(list(truth.values())) <= found.high
    assert 80 <= covered <= 98
    uneven = task_mean_interval({"a": [1.0] * 90 + [0.0] * 10, "b": [0.0, 1.0]})
    assert uneven.mean == pytest.approx(0.7)


def test_tasks_without_spread_are_not_certain():
    perfect = task_mean_interval({"a": [1.0] * 50, "b": [1.0] * 50})
    assert (perfect.mean, perfect.high, perfect.name) == (1.0, 1.0, "wilson of tasks")
    assert 0.9 < perfect.low < 1.0
    mixed = task_mean_interval({"a": [1.0] * 50, "b": [0.0, 1.0] * 25})
    without = task_mean_interval({"b": [0.0, 1.0] * 25})
    assert mixed.low < 0.75 < mixed.high
    assert mixed.mean - mixed.low > (without.mean - without.low) / 2


def test_summary_is_by_length_and_task():
    scored = [Scored("a", 64, index, 1.0) for index in range(4)]
    scored += [Scored("b", 64, index, index / 4) for index in range(4)]
    scored += [Scored("a", 32, 0, 0.0)]
    found = summary(scored, 0.9)
    assert list(found["lengths"]) == ["32", "64"]
    entry = found["lengths"]["64"]
    assert (entry["recall"], entry["samples"]) == (0.6875, 8)
    assert entry["tasks"]["b"]["recall"] == 0.375
    assert entry["tasks"]["a"]["interval"] == "wilson"
    assert found["lengths"]["32"]["tasks"]["a"]["low"] == 0.0
    assert json.loads(json.dumps(found)) == found


def test_lengths_without_positions_are_refused(tmp_path):
    check_positions([64, 128], 128, tmp_path)
    with pytest.raises(
        ConfigError, match=r"length 256: .* max_position_embeddings=128; choose shorter lengths"
    ):
        check_positions([64, 256], 128, tmp_path)


class Parrot:
    """An engine that answers with a function of the prompt."""

    def __init__(self, answer):
        self.answer, self.seen = answer, []

    def generate(self, prompts, params, *, progress, batch_size):
        self.seen.append((len(prompts), batch_size, params.max_new_tokens, params.temperature))
        progress(len(prompts))
        return [[Completion(self.answer(prompt), [1], [0.0], "length")] for prompt in prompts]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tokenizer and a folder of samples of two compact tasks at two lengths."""
    root = tmp_path_factory.mktemp("ruler")
    texts = [f"{NOISE} {noun} 123. Which number goes with {noun}?" for noun in NOUNS]
    train_tokenizer(texts, 300, root / "tokenizer")
    (root / "samples").mkdir()
    tasks = tuple(named_tasks(["needle_single", "needle_multiquery"]))
    make_folder(Plan(tasks, (200, 320), 6), root / "tokenizer", Sources(), root / "samples", workers=1)
    return root


def groups(made):
    return [
        list(read_samples(made / "samples", task, length))
        for length in (200, 320)
        for task in ("needle_single", "needle_multiquery")
    ]


def test_correct_and_wrong_engines(made):
    answers = {sample.prompt: " ".join(sample.answers) for group in groups(made) for sample in group}
    correct = Parrot(answers.__getitem__)
    found = list(predict_all(correct, groups(made), 640))
    assert [each.recall for each in found] == [1.0] * 24
    assert correct.seen == [(6, 3, 8, 0.0), (6, 3, 16, 0.0), (6, 2, 8, 0.0), (6, 2, 16, 0.0)]
    # Shifted by one sample, all answers are present but belong to other questions.
    shifted = dict(zip(answers, [*list(answers.values())[1:], "none"], strict=True))
    wrong = [each.recall for each in predict_all(Parrot(shifted.__getitem__), groups(made), 640)]
    assert np.mean(wrong) < 0.3
    record = found[0].record()
    assert record["prediction"] == answers[found[0].sample.prompt]
    assert len(record["prompt_end"]) <= 300
    lossy = Parrot(str)
    lossy.generate = lambda *arguments, **keywords: []
    with pytest.raises(RuntimeError, match="one completion"):
        predict(lossy, groups(made)[0])


def predictions(made, change=lambda records: records):
    records = [
        {"task": s.task, "length": s.length, "index": s.index, "prediction": s.answers[0]}
        for group in groups(made)
        for s in group
    ]
    return "\n".join(json.dumps(record) for record in change(records)) + "\n"


def test_predictions_from_a_file_are_scored(made, tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_text(predictions(made, lambda records: records[::-1]))
    found = summary(score_file(made / "samples", file))["lengths"]["200"]["tasks"]
    assert found["needle_single"]["recall"] == 1.0
    assert found["needle_multiquery"]["recall"] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records[1:], "no prediction for task=needle_single length=200 index=0"),
        (lambda records: [*records, records[0]], "25: a second prediction"),
        (lambda records: [{**records[0], "index": 6}], "no sample task=needle_single length=200 index=6"),
        (lambda records: [{**records[0], "task": "vt"}], "no sample task=vt"),
        (lambda records: [{**records[0], "prediction": None}], "must be text"),
        (lambda records: [{"task": "vt"}], "with task, length, index and prediction"),
        (lambda records: ["text"], "a JSON object is needed"),
    ],
)
def test_predictions_that_do_not_fit_are_named(change, message, made, tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_text(predictions(made, change))
    with pytest.raises(DataError, match=message):
        list(score_file(made / "samples", file))
    with pytest.raises(DataError, match="no such file"):
        list(score_file(made / "samples", tmp_path / "absent.jsonl"))


def test_stage_config_round_trip_and_identity(tmp_path):
    stage = RulerEvaluate(tasks=["vt"], lengths=[8192], keys=["a", "b"])
    assert from_mapping(RulerEvaluate, to_mapping(stage)) == stage
    assert RulerEvaluate(batch_tokens=1).fingerprint({}) == RulerEvaluate().fingerprint({})
    fingerprints = []
    for name, text in (("a.txt", "One text."), ("b.txt", "One text."), ("b.txt", "Another.")):
        (tmp_path / name).write_text(text)
        fingerprints.append(RulerEvaluate(essays=str(tmp_path / name)).fingerprint({}))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert fingerprints[0] != RulerEvaluate().fingerprint({})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"tasks": []}, {"tasks": ["v"]}, {"lengths": []}, {"lengths": [0]}, {"samples": 0}),
        *({"confidence": 1.0}, {"batch_tokens": 0}),
    ],
)
def test_invalid_stages_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).removesuffix("s")):
        RulerEvaluate(**wrong)


def test_lengths_are_suites_and_samples_their_problems():
    scored = [Scored("vt", 256, 0, 0.25), Scored("vt", 256, 1, 1.0), Scored("cwe", 512, 0, 0.5)]
    found = problems(scored)
    assert found == {"ruler-256": {"vt/0": (0.25, 1), "vt/1": (1.0, 1)}, "ruler-512": {"cwe/0": (0.5, 1)}}
    suite = suites(summary(scored)["lengths"], 0.95)["ruler-256"]
    assert (suite["pass_rate"], suite["problems"], suite["group"]) == (0.625, 2, "long")
