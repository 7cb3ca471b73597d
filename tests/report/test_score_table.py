"""The table of scores: its numbers, its two orientations, and whether it fits a page."""

from __future__ import annotations

import math

import pytest
from many_models import MODELS, SUITES, many_models
from synthetic_run import PROBLEMS, make_run
from table_widths import room, wide_table_widths

from megatron_prism.evaluation.statistics.intervals import wilson_interval
from megatron_prism.report import page as page_module
from megatron_prism.report.page import render_page
from megatron_prism.report.records import run_from_artifacts
from megatron_prism.report.score_figure import score_figure
from megatron_prism.report.score_table import score_tables
from megatron_prism.report.tables import differences, score_rows
from megatron_prism.report.text_width import terminal_width


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("scores") / "run")


def test_rates_stand_above_their_intervals_and_the_change_beside_them(artifacts):
    (table,) = score_tables(artifacts)
    assert table.columns == ["suite", "base", "midtrained", "change (points)"]
    low, high = (100 * end for end in wilson_interval(82, PROBLEMS))
    assert table.rows[0][0] == "math\n150 problems"
    assert table.rows[0][2] == f"{8200 / 150:.1f}\n{low:.1f}–{high:.1f}"
    change = differences(score_rows(artifacts), artifacts)[0]
    assert change.change == pytest.approx((82 - 3) / 150)
    assert change.low < change.change < change.high
    assert table.rows[0][3].startswith("+52.7\n+4")


def test_one_model_has_no_change_and_no_evaluation_no_table(artifacts):
    one = {name: artifact for name, artifact in artifacts.items() if name != "eval-midtrained"}
    assert score_tables(one)[0].columns == ["suite", "base"]
    assert score_tables({}) == []


def test_more_models_than_suites_are_rows_and_fewer_are_columns(artifacts):
    many = many_models(artifacts["eval-base"], MODELS, SUITES[:3])
    (table,) = score_tables(many)
    assert table.columns == ["model", *(f"{suite}\n500 problems" for suite in SUITES[:3])]
    assert [row[0] for row in table.rows] == list(MODELS)
    few = many_models(artifacts["eval-base"], MODELS[:3], SUITES)
    (table,) = score_tables(few)
    assert table.columns == ["suite", *MODELS[:3]]
    assert len(table.rows) == len(SUITES)


def test_every_score_is_in_exactly_one_table_under_its_own_names(artifacts):
    many = many_models(artifacts["eval-base"], MODELS, SUITES)
    tables = score_tables(many)
    assert len(tables) > 1
    expected = {
        (row.model, row.suite): f"{100 * row.estimate.rate:.1f}\n"
        f"{100 * row.estimate.low:.1f}–{100 * row.estimate.high:.1f}"
        for row in score_rows(many)
    }
    found = []
    for table in tables:
        for label, *cells in table.rows:
            for column, cell in zip(table.columns[1:], cells, strict=True):
                pair = (label, column) if table.columns[0] == "model" else (column, label)
                found.append(((pair[0], pair[1].split("\n")[0]), cell))
    assert len(found) == len(expected) == 120
    assert dict(found) == expected


@pytest.mark.parametrize(("models", "suites"), [(10, 3), (10, 7), (10, 12), (2, 12)])
def test_the_tables_fit_the_page(artifacts, models, suites):
    many = many_models(artifacts["eval-base"], MODELS[:models], SUITES[:suites])
    page = render_page(run_from_artifacts(many), "wide")
    for paper in (False, True):
        widths = wide_table_widths(page, paper)
        assert widths
        assert max(widths) <= room(page, paper)


def test_one_table_of_all_would_not_fit(artifacts, monkeypatch):
    """The measure of the test above sees a table that is too wide."""
    many = many_models(artifacts["eval-base"], MODELS, SUITES)
    monkeypatch.setattr(page_module, "score_tables", lambda made: score_tables(made, math.inf))
    page = render_page(run_from_artifacts(many), "wide")
    for paper in (False, True):
        assert max(wide_table_widths(page, paper)) > room(page, paper)


def test_a_terminal_gets_tables_of_its_width(artifacts):
    many = many_models(artifacts["eval-base"], MODELS, SUITES)
    tables = score_tables(many, 80, terminal_width)
    assert len(tables) > len(score_tables(many))
    for table in tables:
        assert (
            sum(max(map(terminal_width, column)) for column in zip(table.columns, *table.rows, strict=True))
            <= 80
        )


def test_the_figure_of_ten_models_names_each_of_them_in_words(artifacts):
    """Colours repeat after seven models, so names stand on the axis, once in each row of panels."""
    many = many_models(artifacts["eval-base"], MODELS, SUITES)
    svg = score_figure(score_rows(many))
    for model in MODELS:
        assert svg.count(f">{model}<") == 3
    for suite in SUITES:
        assert svg.count(f">{suite}<") == 1
    assert score_figure(score_rows(many)) == svg
