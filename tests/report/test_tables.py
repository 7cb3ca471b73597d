from __future__ import annotations

import dataclasses
import json

import pytest
from synthetic_run import PASSED, PROBLEMS, make_run

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.scores import PROBLEMS as PROBLEMS_FILE
from megatron_prism.evaluation.statistics.intervals import wilson_interval
from megatron_prism.report.score_table import score_tables
from megatron_prism.report.tables import (
    differences,
    duration,
    key_config,
    model_labels,
    provenance,
    score_rows,
    signed,
    size,
    stage_table,
    training_table,
    validation_table,
)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("tables") / "run")


def test_score_rows_hold_the_recomputed_rates_and_intervals(artifacts):
    rows = score_rows(artifacts)
    assert [(r.model, r.suite) for r in rows] == [
        (model, suite) for model in ("base", "midtrained") for suite in ("math", "science", "code")
    ]
    for row in rows:
        passed = PASSED[row.evaluation][row.suite]
        assert row.estimate.rate == pytest.approx(passed / PROBLEMS)
        assert (row.estimate.low, row.estimate.high) == pytest.approx(wilson_interval(passed, PROBLEMS))


def test_one_evaluation_has_no_change_and_none_has_no_rows(artifacts):
    one = {k: a for k, a in artifacts.items() if k != "eval-midtrained"}
    assert differences(score_rows(one), one) == []
    assert score_rows({}) == []


def test_a_change_is_one_of_the_same_problems(artifacts):
    """Where two models have other problems, there is none, and the page is made all the same."""
    math, *others = differences(score_rows(artifacts), artifacts)
    file = artifacts["eval-base"].path / PROBLEMS_FILE
    before = file.read_text()
    kept = json.loads(before)
    # Half of the problems: the change is that of the half.
    kept["math"] = dict(list(kept["math"].items())[:75])
    file.write_text(json.dumps(kept))
    try:
        half = differences(score_rows(artifacts), artifacts)[0]
        kept["math"] = {name: (right, 7) for name, (right, _) in kept["math"].items()}
        file.write_text(json.dumps(kept))
        without = differences(score_rows(artifacts), artifacts)
        table = score_tables(artifacts)[0]
    finally:
        file.write_text(before)
    assert half.change != math.change
    assert half.high - half.low > math.high - math.low
    assert [each.suite for each in without] == [each.suite for each in others]
    assert table.rows[0][3] == "–"


def test_a_model_scored_twice_gets_two_labels(artifacts):
    twice = {**artifacts, "eval-again": artifacts["eval-base"]}
    assert model_labels(twice) == {
        "eval-base": "base (eval-base)",
        "eval-midtrained": "midtrained",
        "eval-again": "base (eval-again)",
    }
    assert score_tables(twice)[0].columns == [
        "model",
        *(f"{name}\n150 problems" for name in PASSED["eval-base"]),
    ]
    alone = {"eval-base": artifacts["eval-base"]}
    assert model_labels(alone) == {"eval-base": "eval-base"}


def test_a_receipt_without_scores_is_named(artifacts):
    whole = artifacts["eval-base"]
    broken = dataclasses.replace(
        whole, receipt=dataclasses.replace(whole.receipt, metrics={"suites": {"math": {"pass_rate": 1}}})
    )
    with pytest.raises(ArtifactError, match="suite 'math' are not scores"):
        score_rows({"eval-base": broken})


def test_training_and_validation_tables(artifacts):
    table = validation_table(artifacts)
    assert table.columns == ["stage", "code", "math", "science", "web"]
    assert [row[0] for row in table.rows] == ["base", "midtrained"]
    assert float(table.rows[1][4]) == pytest.approx(
        artifacts["midtrained"].metrics["validation"]["web"], abs=5e-4
    )
    speed = training_table(artifacts)
    assert speed.rows[0][1:5] == ["1,234,567", "400", "1,638,400", "21,346"]
    assert speed.rows[0][6] == "31.4 % of measured 1024^3 bf16 matmul, 2 threads"


def test_stage_table_and_provenance(artifacts):
    table = stage_table(artifacts)
    base = next(row for row in table.rows if row[0] == "base")
    assert base[1:3] == ["train", "1 min 07 s"]
    assert base[5] == "steps=400, global_batch_size=16, lr=0.0003, seed=1"
    facts = dict(provenance(artifacts))
    assert facts["torch"] == "2.13.0+cpu"
    assert facts["commit"] == "abc1234"
    assert facts["started"] == "2026-03-01T10:00:00+00:00, last stage 2026-03-01T10:07:00+00:00"


def test_provenance_tells_stages_with_other_versions_apart(artifacts):
    other = artifacts["base"]
    receipt = dataclasses.replace(other.receipt, versions={**other.receipt.versions, "commit": "def5678"})
    mixed = {"tokens": artifacts["tokens"], "base": dataclasses.replace(other, receipt=receipt)}
    assert dict(provenance(mixed))["commit"] == "abc1234 (tokens); def5678 (base)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_small_formats():
    assert [size(0), size(1023), size(1536), size(20 << 20)] == ["0 B", "1023 B", "1.5 KiB", "20.0 MiB"]
    assert [signed(0.125), signed(-0.03), signed(0.0), signed(-0.0001)] == ["+12.5", "−3.0", "0.0", "0.0"]
    assert key_config({"data": {"weights": {"web": 0.5}}, "other": 1}) == "weights={web 0.5}"
    assert key_config({}) == "–"
