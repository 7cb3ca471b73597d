"""The figure of all scores: bars for a few models, and for many a dot for each model in a panel for each suite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from megatron_prism.analysis.figures import INK, PALETTE, Drawing, inline_svg
from megatron_prism.report.tables import ScoreRow

WIDTH = 9.4
# More bars than this cannot carry their numbers, and more models than colours cannot be told apart.
MOST_BARS = 24
PANELS_IN_A_ROW = 4


def score_figure(rows: Sequence[ScoreRow]) -> str:
    """Pass rates in percent with their intervals as whiskers, as inline SVG."""
    if not rows:
        return ""
    suites = list(dict.fromkeys(row.suite for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    if len(models) <= len(PALETTE) and len(models) * len(suites) <= MOST_BARS:
        drawing = Drawing(WIDTH, 3.2, lambda figure: _bars(figure, rows, suites, models))
    else:
        lines = math.ceil(len(suites) / PANELS_IN_A_ROW)
        height = lines * (0.75 + 0.19 * len(models))
        drawing = Drawing(WIDTH, height, lambda figure: _dots(figure, rows, suites, models))
    return inline_svg(drawing, "scores")


def _bars(figure: Any, rows: Sequence[ScoreRow], suites: Sequence[str], models: Sequence[str]) -> None:
    axis = figure.subplots()
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        shown = [row for row in rows if row.model == model]
        places = [suites.index(row.suite) + (number - (len(models) - 1) / 2) * width for row in shown]
        rates = [100 * row.estimate.rate for row in shown]
        reach = _reach(shown)
        axis.bar(places, rates, width * 0.9, color=PALETTE[number], label=model)
        axis.errorbar(places, rates, yerr=reach, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
        for place, rate, above in zip(places, rates, reach[1], strict=True):
            label = {"ha": "center", "va": "bottom", "fontsize": 8.5, "color": INK}
            axis.text(place, rate + above + 1.5, f"{rate:.1f}", **label)
    axis.set_xticks(range(len(suites)), suites)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="x", visible=False)
    axis.set_xlim(-0.6, len(suites) - 0.4)
    axis.set_ylim(0, min(112, max(20, 1.15 * max(100 * row.estimate.high for row in rows) + 5)))
    axis.set_ylabel("pass rate (%)")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(models), 5), borderaxespad=0.2)


def _dots(figure: Any, rows: Sequence[ScoreRow], suites: Sequence[str], models: Sequence[str]) -> None:
    columns = min(len(suites), PANELS_IN_A_ROW)
    panels = figure.subplots(math.ceil(len(suites) / columns), columns, squeeze=False, sharey=True)
    for panel in panels.flat[len(suites) :]:
        panel.set_axis_off()
    for panel, suite in zip(panels.flat, suites, strict=False):
        shown = [row for row in rows if row.suite == suite]
        places = [models.index(row.model) for row in shown]
        rates = [100 * row.estimate.rate for row in shown]
        whiskers = {"fmt": "o", "markersize": 4.5, "elinewidth": 1.2, "capsize": 0}
        panel.errorbar(rates, places, xerr=_reach(shown), color=PALETTE[0], **whiskers)
        panel.set_title(suite)
        panel.set_xlim(-3, 103)
        panel.set_xticks([0, 50, 100])
        panel.set_yticks(range(len(models)), models)
        panel.tick_params(axis="y", length=0)
        panel.set_ylim(len(models) - 0.5, -0.5)
    figure.supxlabel("pass rate (%)", fontsize=9.5)


def _reach(rows: Sequence[ScoreRow]) -> list[list[float]]:
    """How far each interval goes below and above its score, in percent."""
    return [
        [max(0.0, 100 * (row.estimate.rate - row.estimate.low)) for row in rows],
        [max(0.0, 100 * (row.estimate.high - row.estimate.rate)) for row in rows],
    ]
