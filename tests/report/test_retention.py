"""What later models kept of the base, in the report."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from megatron_prism.cli import eval_compare
from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.comparison import KEPT, LOST, MARGIN, UNDECIDED, compare, group_changes
from megatron_prism.evaluation.scored_model import ScoredModel
from megatron_prism.evaluation.scores import PROBLEMS, write_scores
from megatron_prism.pipeline.artifact import Receipt, partial_path, seal
from megatron_prism.report.page import render_page
from megatron_prism.report.records import run_from_artifacts
from megatron_prism.report.retention import MOST_SUITES_SHOWN, retention, retention_table, suites_table

# Stage -> kind, group, and the chance of a right answer for each suite.
SCORED = {
    "base": {
        "evaluate_base": ("evaluation", "domain", {"math": 0.2, "code": 0.2}),
        "ruler_base": ("ruler", "long", {"ruler-512": 0.9}),
        "harness_base": ("harness", "general", {f"task{n}": 0.95 for n in range(MOST_SUITES_SHOWN + 1)}),
    },
    "midtrain": {
        "evaluate_midtrain": ("evaluation", "domain", {"math": 0.6, "code": 0.7}),
        "ruler_midtrain": ("ruler", "long", {"ruler-512": 0.3}),
        "harness_midtrain": ("harness", "general", {f"task{n}": 0.95 for n in range(MOST_SUITES_SHOWN + 1)}),
        "evaluate_again": ("evaluation", "domain", {"math": 0.0}),
    },
    "extend": {
        "evaluate_extend": ("evaluation", "domain", {"math": 0.2}),
        "ruler_extend": ("ruler", "long", {"ruler-512": 0.9}),
    },
    "stranger": {"evaluate_stranger": ("evaluation", "domain", {"poetry": 0.2})},
}


def sealed(folder, stage, kind, inputs, write):
    partial = partial_path(folder / stage)
    partial.mkdir(parents=True)
    write(partial)
    return seal(partial, folder / stage, Receipt(kind, f"print-{stage}", stage, {}, inputs))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retention")
    generator = np.random.default_rng(1)
    made = {}
    for model, stages in SCORED.items():
        made[model] = sealed(folder, model, "train", {}, lambda out: (out / "weights").write_text("w"))
        for stage, (kind, group, chances) in stages.items():
            problems = {
                suite: {f"p{n}": (float(right), 1) for n, right in enumerate(generator.random(150) < chance)}
                for suite, chance in chances.items()
            }
            scores = {suite: {"pass_rate": 0.5, "low": 0.4, "high": 0.6, "group": group} for suite in chances}
            made[stage] = sealed(
                folder,
                stage,
                kind,
                {"model": f"print-{model}"},
                lambda out, s=scores, p=problems: write_scores(out, {"suites": s}, p),
            )
    return made


def test_the_verdicts_of_each_later_model_by_group(artifacts):
    found = retention(artifacts)
    verdicts = {(each.model, each.group): each.verdict for each in found.groups}
    assert found.base == "base"
    assert verdicts == {
        ("midtrain", "domain"): KEPT,
        ("midtrain", "general"): KEPT,
        ("midtrain", "long"): LOST,
        ("extend", "domain"): UNDECIDED,
        ("extend", "long"): UNDECIDED,
    }


def test_the_numbers_are_those_of_the_comparison(artifacts):
    """A second evaluation of the same suite does not count, nor a model that shares no suite with the base."""
    models = {
        model: ScoredModel.read(*(artifacts[stage].path for stage in stages if stage != "evaluate_again"))
        for model, stages in SCORED.items()
        if model != "stranger"
    }
    made = compare(models, MARGIN)
    found = retention(artifacts)
    assert (found.suites, found.groups) == (made, group_changes(made, MARGIN))
    assert inspect.signature(eval_compare.compare).parameters["margin"].default == 100 * MARGIN


def test_a_row_per_model_and_a_column_per_group(artifacts):
    found = retention(artifacts)
    table = retention_table(found)
    assert table.columns == ["model", "domain", "general", "long contexts"]
    assert [row[0] for row in table.rows] == ["midtrain", "extend"]
    assert table.rows[0][3].endswith("1 suite: lost")
    assert "2 suites: kept" in table.rows[0][1]
    assert table.rows[1][2] == "–"
    # A crowd of suites is its mean only.
    assert [row[:2] for row in suites_table(found).rows] == [
        ["midtrain", "math"],
        ["midtrain", "code"],
        ["midtrain", "ruler-512"],
        ["extend", "math"],
        ["extend", "ruler-512"],
    ]


def test_the_page_states_margin_and_method(artifacts):
    # The receipts here have no metrics, which the section of scores reads.
    shown = {name: each for name, each in artifacts.items() if each.kind != "ruler"}
    page = render_page(run_from_artifacts(shown, ""), "a run")
    assert "Mean change from base in points on the same problems" in page
    assert "above −2 points" in page
    assert "95 % interval (paired t" in page
    alone = {name: shown[name] for name in ("base", "evaluate_base")}
    assert 'id="retention"' not in render_page(run_from_artifacts(alone, ""), "a run")


def test_a_run_without_scores_has_no_table_and_damaged_problems_are_an_error(artifacts, tmp_path):
    trained = {"base": artifacts["base"]}
    assert retention_table(retention(trained)).rows == []
    scores = {"math": {"pass_rate": 0.5, "low": 0.4, "high": 0.6}}

    def write(out):
        write_scores(out, {"suites": scores}, {})
        (out / PROBLEMS).write_text('{"math": [1, 2]}')

    damaged = sealed(tmp_path, "evaluate_damaged", "evaluation", {"model": "print-base"}, write)
    with pytest.raises(ArtifactError, match="not the problems of an evaluation"):
        retention({**trained, "damaged": damaged})
