"""The paper's Table 7 from receipts: rows, lengths, domains and recovery."""

from __future__ import annotations

import json

import pytest
import zstandard

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.ruler.scoring import Scored, summary
from megatron_prism.pipeline.artifact import Receipt, partial_path, seal
from megatron_prism.report.page import render_page
from megatron_prism.report.records import run_from_artifacts
from megatron_prism.report.restoration import recoveries, recovery_table, restoration_table, ruler_scores

LENGTHS = (128, 512)
# How many of 40 samples each model answers correctly at each length.
RIGHT = {"base": (40, 32), "midtrain": (40, 8), "merge": (40, 16), "extend": (40, 26)}


def artifact(folder, stage, kind, metrics, inputs, samples=()):
    partial = partial_path(folder / stage)
    partial.mkdir(parents=True)
    (partial / "file").write_text(stage)
    if samples:
        with zstandard.open(partial / "samples.jsonl.zst", "wb") as handle:
            handle.write("".join(json.dumps(line) + "\n" for line in samples).encode("ascii"))
    return seal(partial, folder / stage, Receipt(kind, f"print-{stage}", stage, {}, inputs, metrics=metrics))


@pytest.fixture
def artifacts(tmp_path):
    made = {}
    for model, counts in RIGHT.items():
        made[model] = artifact(tmp_path, model, "train", {}, {})
        scored = [
            Scored("needle", length, index, float(index < right))
            for length, right in zip(LENGTHS, counts, strict=True)
            for index in range(40)
        ]
        samples = [{"length": s.length, "task": s.task, "index": s.index, "recall": s.recall} for s in scored]
        inputs = {"model": f"print-{model}"}
        made[f"ruler_{model}"] = artifact(
            tmp_path, f"ruler_{model}", "ruler", summary(scored), inputs, samples
        )
    values = {"low": 0.4, "high": 0.5, "truncated": 0.0}
    metrics = {"pass_rate": 0.435, "confidence": 0.95, "interval": "wilson", "problems": 200, "samples": 200}
    made["evaluate_midtrain"] = artifact(
        tmp_path,
        "evaluate_midtrain",
        "evaluation",
        {"suites": {"math": values | metrics}},
        {"model": "print-midtrain"},
    )
    return made


def test_a_row_for_each_model_lengths_then_domains(artifacts):
    table = restoration_table(artifacts)
    assert table.columns == ["model", "128", "512", "math"]
    assert [row[0] for row in table.rows] == list(RIGHT)
    assert [row[2].split("\n")[0] for row in table.rows] == ["80.0", "20.0", "40.0", "65.0"]
    assert [row[3] for row in table.rows] == ["–", "43.5", "–", "–"]


def test_what_came_back(artifacts):
    found = recoveries(artifacts)
    assert list(found) == ["merge", "extend"]
    assert found["extend"][512].mean == pytest.approx(0.75)
    assert found["merge"][512].mean == pytest.approx(1 / 3)
    # At 128 nothing was lost.
    assert found["extend"][128] is None
    table = recovery_table(artifacts)
    assert [row[1] for row in table.rows] == ["–", "–"]
    assert table.rows[1][2].startswith("75.0\n")


def test_two_models_have_nothing_to_restore(artifacts):
    few = {name: artifacts[name] for name in ("base", "ruler_base", "midtrain", "ruler_midtrain")}
    assert recoveries(few) == {}
    assert recovery_table(few).rows == []


def test_a_model_is_named_by_the_stage_that_made_it(artifacts):
    assert [row.model for row in ruler_scores(artifacts)] == list(RIGHT)
    alone = {"ruler_merge": artifacts["ruler_merge"]}
    assert [row.model for row in ruler_scores(alone)] == ["ruler_merge"]


def test_the_page_has_the_section_when_there_is_something_to_show(artifacts):
    page = render_page(run_from_artifacts(artifacts), "restoration")
    assert "Retrieval by length" in page
    assert '75.0<span class="more">' in page
    assert page.count("<svg") >= 2
    without = {name: each for name, each in artifacts.items() if each.kind != "ruler"}
    assert "Retrieval by length" not in render_page(run_from_artifacts(without), "none")


def test_a_receipt_without_scores_is_refused(tmp_path):
    broken = artifact(tmp_path, "ruler_x", "ruler", {"lengths": {"128": {"recall": 1}}}, {})
    with pytest.raises(ArtifactError, match="are not RULER scores"):
        ruler_scores({"ruler_x": broken})
