from __future__ import annotations

import sys
from itertools import combinations
from xml.etree import ElementTree

import pytest
from synthetic_run import STAGES, make_run

from megatron_prism.errors import ArtifactError
from megatron_prism.report.figures import CURVE_POINTS, smooth, thin, training_figure
from megatron_prism.report.graph_figure import BOX_WIDTH, depths, graph_figure
from megatron_prism.report.records import History, StageRecord, read_history
from megatron_prism.report.score_figure import score_figure
from megatron_prism.report.tables import score_rows

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("figures") / "run")


def test_scores_are_labelled_with_their_rates_and_repeat_to_the_byte(artifacts):
    svg = score_figure(score_rows(artifacts))
    assert {"math", "science", "code", "base", "midtrained", "2.0", "54.7", "64.7"} <= set(texts(svg))
    assert svg == score_figure(score_rows(artifacts))
    assert svg.startswith("<svg")
    assert "metadata" not in svg
    assert "matplotlib.pyplot" not in sys.modules


def test_training_figure_has_a_panel_for_each_curve(artifacts):
    history = read_history(artifacts["base"])
    assert history is not None
    assert len(history.loss) == 400
    assert len(history.validation["web"]) == 8
    svg = training_figure("base", history, sorted(history.validation))
    assert {"training loss (nats/token)", "validation loss (nats/token)", "learning rate", "web"} <= set(
        texts(svg)
    )
    only_loss = training_figure("x", History(loss=[(1, 2.0), (2, 1.0)]), [])
    assert "learning rate" not in only_loss
    assert training_figure("x", History(), []) == ""
    assert score_figure([]) == ""


def test_names_are_text_not_formulas_or_markup():
    history = History(loss=[(1, 1.0)], validation={"$a^<b>$": [(1, 1.0)]})
    assert "$a^<b>$" in texts(training_figure("$\\bad{", history, ["$a^<b>$"]))


def test_history_keeps_the_last_of_a_repeated_step_and_drops_what_is_not_finite(tmp_path, artifacts):
    base = artifacts["eval-base"]
    assert read_history(base) is None
    file = artifacts["base"].path / "metrics.jsonl"
    whole = file.read_text()
    try:
        file.write_text('{"step": 1, "loss": 9}\n\n{"step": 2, "loss": NaN}\n{"step": 1, "loss": 5}\n')
        history = read_history(artifacts["base"])
        assert history is not None
        assert history.loss == [(1, 5.0)]
        file.write_text('{"step": 1, "loss": 9}\n{"loss": 1}\n')
        with pytest.raises(ArtifactError, match=r"metrics\.jsonl:2: not a metrics record"):
            read_history(artifacts["base"])
    finally:
        file.write_text(whole)


def test_long_curves_are_thinned_to_means():
    points = [(i, float(i % 2)) for i in range(12 * CURVE_POINTS)]
    kept = thin(points)
    assert len(kept) == CURVE_POINTS
    assert {value for _, value in kept} == {0.5}
    assert thin(points[:10]) == points[:10]


def test_smoothing_keeps_a_constant_and_starts_at_the_start():
    assert smooth([3.0] * 200) == pytest.approx([3.0] * 200)
    assert smooth([1.0, *[0.0] * 199])[0] == 1.0


def records(parents: dict[str, list[str]]) -> list[StageRecord]:
    return [StageRecord(name, "kind", "not made", {p: p for p in made}) for name, made in parents.items()]


def test_depth_is_the_longest_path():
    assert depths({"a": [], "b": ["a"], "c": ["a", "b"], "d": []}) == {"a": 0, "b": 1, "c": 2, "d": 0}


def boxes(svg: str) -> list[tuple[float, float]]:
    return [(float(e.get("x")), float(e.get("y"))) for e in ElementTree.fromstring(svg).iter(f"{SVG}rect")]


@pytest.mark.parametrize(
    "parents",
    [
        {name: list(inputs.values()) for name, (_, inputs) in STAGES.items()},
        {"a": []},
        {f"s{i}": [f"s{j}" for j in range(i) if (i + j) % 3 == 0] for i in range(14)},
    ],
)
def test_boxes_do_not_overlap_and_lie_inside(parents):
    svg = graph_figure(records(parents))
    placed = boxes(svg)
    assert len(placed) == len(parents)
    for (x1, y1), (x2, y2) in combinations(placed, 2):
        assert y1 != y2 or abs(x1 - x2) >= BOX_WIDTH
    _, _, width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split())
    assert all(x >= 0 and x + BOX_WIDTH <= width and 0 <= y <= height for x, y in placed)
    assert svg.count("marker-end") == sum(map(len, parents.values()))


def test_inputs_lie_above_their_users_and_names_are_escaped():
    svg = graph_figure(records({"<b>&": [], "user": ["<b>&"]}))
    (_, first), (_, second) = boxes(svg)
    assert first < second
    assert "<b>&" in texts(svg)
    assert graph_figure([]) == ""


def test_arrows_that_repeat_a_longer_path_are_lighter():
    svg = graph_figure(records({"a": [], "b": ["a"], "c": ["a", "b"]}))
    assert svg.count('stroke="#c4c4c4"') == 1
    assert svg.count('stroke="#555"') == 2
