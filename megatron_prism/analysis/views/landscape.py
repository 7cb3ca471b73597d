"""Tables and figures of `analyze landscape`: the paper's curve along the path, and its map of the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prism.analysis.figures import FULL_WIDTH, HALF_WIDTH, INK, PALETTE, Drawing
from megatron_prism.analysis.view import View
from megatron_prism.analysis.views.words import rate
from megatron_prism.platform.text_table import Table

MEAN = "mean"
MOST_IN_A_ROW, MOST_NAMES_IN_A_ROW = 3, 5
# Percentage points that the colours of a map span at least.
LEAST_RANGE = 5.0
# Where the models lie on the path (a, then 1 + b) and in the plane (alpha, beta).
ON_PATH = {"base": 0, "midtrain": 1, "rl": 2}
IN_PLANE = {"midtrain": (0, 0), "rl": (1, 0), "base": (0, 1)}
MARKERS = {"base": "s", "midtrain": "o", "rl": "^"}
# Points from a model's marker to its name, away from the numbers of the paper's grid.
NAME_OFFSETS = {"base": (5, 3), "midtrain": (5, -8), "rl": (5, -8)}


def view(document: Mapping[str, Any]) -> View:
    """The points of path and grid, the barriers, a curve and a map; what was not evaluated is left out."""
    tables: list[Table] = []
    drawings: dict[str, Drawing] = {}
    if document["path"]:
        tables.append(_path_table(document))
        drawings["path"] = _curve(document)
    if document["barriers"]:
        tables.append(_barrier_table(document))
    if document["grid"]["points"]:
        tables += [_grid_table(document, suite) for suite in _shown(document)]
        drawings["grid"] = _map(document)
    return View(tables, drawings)


def _shown(document: Mapping[str, Any]) -> list[str]:
    """The mean of the suites, if there are several, and every suite."""
    suites = list(document["suites"])
    return [MEAN, *suites] if len(suites) > 1 else suites


def _of(point: Mapping[str, Any], suite: str) -> Mapping[str, float]:
    found: Mapping[str, float] = point[MEAN] if suite == MEAN else point["suites"][suite]
    return found


def _path_table(document: Mapping[str, Any]) -> Table:
    shown = _shown(document)
    rows = [
        [
            f"{point['a']:.3g}",
            f"{point['b']:.3g}",
            point["model"] or "",
            *(rate(_of(point, suite)) for suite in shown),
        ]
        for point in (document["points"][index] for index in document["path"])
    ]
    title = (
        "pass rate (%) of W = base + a (midtrain - base) + b (rl - midtrain), with "
        f"{100 * document['confidence']:g} % intervals"
    )
    return Table(["a", "b", "model", *shown], rows, [True, True, False, *[True] * len(shown)], title)


def _barrier_table(document: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"{each['from']} → {each['to']}",
            each["suite"],
            f"{100 * each['value']:+.1f}"
            + ("" if each["low"] is None else f" ({100 * each['low']:+.1f} to {100 * each['high']:+.1f})"),
            f"{each['at']:.3g}",
        ]
        for each in document["barriers"]
    ]
    title = "barriers: largest falls below the straight line between two models, in percentage points"
    return Table(["leg", "suite", "barrier", "at"], rows, [False, False, True, True], title)


def _grid_table(document: Mapping[str, Any], suite: str) -> Table:
    grid = document["grid"]
    rows = [
        [f"{beta:g}", *(f"{100 * _of(document['points'][index], suite)['value']:.1f}" for index in row)]
        for beta, row in zip(grid["beta"], grid["points"], strict=True)
    ]
    columns = ["beta \\ alpha", *(f"{alpha:g}" for alpha in grid["alpha"])]
    title = f"{suite}: pass rate (%) at midtrain + alpha (rl - midtrain) + beta (base - midtrain)"
    return Table(columns, rows, [True] * len(columns), title)


def _curve(document: Mapping[str, Any]) -> Drawing:
    points = [document["points"][index] for index in document["path"]]
    places = [point["a"] + point["b"] if point["b"] else point["a"] for point in points]
    shown = _shown(document)

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for number, suite in enumerate(shown):
            colour = INK if suite == MEAN else PALETTE[(number - (len(shown) > 1)) % len(PALETTE)]
            found = [_of(point, suite) for point in points]
            axis.fill_between(
                places,
                [100 * each["low"] for each in found],
                [100 * each["high"] for each in found],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            axis.plot(
                places,
                [100 * each["value"] for each in found],
                color=colour,
                marker="o",
                markersize=3.5,
                linewidth=2.0 if suite == MEAN else 1.5,
                label=suite,
            )
        ends = {label: ON_PATH[role] for role, label in document["models"].items()}
        for label, place in ends.items():
            axis.axvline(place, color=INK, linewidth=0.8, linestyle="--")
            axis.annotate(
                label,
                (place, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axis.set_xticks(places, [_tick(point) for point in points], fontsize=7.5)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("pass rate (%)")
        legs = [(0.5, "a: base to midtrain"), (1.5, "b: midtrain to rl")][: len(ends) - 1]
        for middle, what in legs:
            axis.annotate(
                what,
                (middle, 0),
                xycoords=("data", "axes fraction"),
                xytext=(0, -20),
                textcoords="offset points",
                ha="center",
                va="top",
            )
        if len(shown) > 1:
            figure.legend(loc="outside upper left", ncols=min(len(shown), MOST_NAMES_IN_A_ROW))

    caption = (
        "Pass rate along W = base + a (midtrain - base) + b (rl - midtrain); bands are "
        f"{100 * document['confidence']:g} % intervals."
    )
    return Drawing(FULL_WIDTH, 3.2, draw, caption)


def _tick(point: Mapping[str, Any]) -> str:
    exact: Sequence[str] = point["exact"]
    return exact[1] if point["b"] else exact[0]


def _map(document: Mapping[str, Any]) -> Drawing:
    shown = _shown(document)
    columns = min(len(shown), 2 if len(shown) in (2, 4) else MOST_IN_A_ROW)
    lines = -(-len(shown) // columns)

    def draw(figure: Any) -> None:
        grid = figure.subplots(lines, columns, squeeze=False)
        for axis in list(grid.flat)[len(shown) :]:
            axis.set_visible(False)
        for axis, suite in zip(grid.flat, shown, strict=False):
            _panel(axis, document, suite, small=columns == MOST_IN_A_ROW)
        for row in grid:
            row[0].set_ylabel("beta (midtrain to base)")
        for column in range(columns):
            lowest = [grid[line][column] for line in range(lines) if line * columns + column < len(shown)]
            lowest[-1].set_xlabel("alpha (midtrain to rl)")

    width = HALF_WIDTH if columns == 1 else FULL_WIDTH
    caption = (
        "Pass rate in percent at midtrain + alpha (rl - midtrain) + beta (base - midtrain). Models have their own pass "
        "rate beside their name, if it was evaluated."
    )
    return Drawing(width, (width / columns) * 0.86 * lines, draw, caption)


def _panel(axis: Any, document: Mapping[str, Any], suite: str, *, small: bool) -> None:
    import numpy
    from matplotlib.colors import Normalize
    from matplotlib.patheffects import withStroke

    grid, points = document["grid"], document["points"]
    values = numpy.array(
        [[100 * _of(points[index], suite)["value"] for index in row] for row in grid["points"]]
    )
    # From 0, and never so fine that the noise of rates near 0 looks like a shape.
    norm = Normalize(0, max(values.max(), LEAST_RANGE))
    mesh = axis.pcolormesh(grid["alpha"], grid["beta"], values, shading="nearest", cmap="viridis", norm=norm)
    axis.figure.colorbar(mesh, ax=axis, shrink=0.9)
    for beta, row in zip(grid["beta"], values, strict=True):
        for alpha, value in zip(grid["alpha"], row, strict=True):
            bright = norm(value) > 0.6
            axis.text(
                alpha,
                beta,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color=INK if bright else "white",
            )
    evaluated = {
        point["model"]: f" {100 * _of(point, suite)['value']:.0f}" for point in points if point["model"]
    }
    for role, label in document["models"].items():
        alpha, beta = IN_PLANE[role]
        axis.scatter(
            [alpha], [beta], marker=MARKERS[role], s=34, color=PALETTE[1], edgecolors="white", zorder=4
        )
        written = axis.annotate(
            label + evaluated.get(label, ""),
            (alpha, beta),
            xytext=NAME_OFFSETS[role],
            textcoords="offset points",
            fontsize=5.5 if small else 7.5,
            color=INK,
            fontweight="bold",
            zorder=5,
        )
        written.set_path_effects([withStroke(linewidth=2, foreground="white")])
    axis.set_xticks(grid["alpha"])
    axis.set_yticks(grid["beta"])
    axis.tick_params(labelsize=7.5)
    axis.grid(visible=False)
    axis.set_title(suite)
