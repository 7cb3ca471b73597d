"""Figures as inline SVG: training curves and retrieval. They need no display and no global state.

Text in a figure can be selected. Ids are seeded and there is no date, so equal numbers give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from megatron_prism.analysis.figures import PALETTE, STYLE, inline
from megatron_prism.report.records import History
from megatron_prism.report.restoration import RulerScores

# Points of a long curve; more than fit into the width of a page would only make the file larger.
CURVE_POINTS = 600
SMOOTHING_SHARE = 0.02


def training_figure(name: str, history: History, sources: Sequence[str]) -> str:
    """Loss, validation loss by source and learning rate of one training stage, side by side.

    Args:
        name: the stage's name; seeds the ids.
        sources: every validation source of the run, in order, so that a source has the same colour in all figures.
    """
    panels = [kind for kind in ("loss", "validation", "lr") if getattr(history, kind)]
    if not panels:
        return ""
    with canvas(name, 9.4, 2.9, len(panels)) as (axes, render):
        for axis, kind in zip(axes, panels, strict=True):
            axis.set_xlabel("step")
            if kind == "loss":
                _loss_panel(axis, history.loss)
            elif kind == "lr":
                steps, rates = zip(*thin(history.lr), strict=True)
                axis.plot(steps, rates, color=PALETTE[0], linewidth=1.6)
                axis.set_ylim(bottom=0)
                axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=False)
                axis.set_title("learning rate")
            else:
                _validation_panel(axis, history, sources)
            axis.set_xlim(left=0)
        return render()


def retrieval_figure(rows: Sequence[RulerScores]) -> str:
    """Recall against length, one line for each model, with intervals as whiskers."""
    if not rows:
        return ""
    lengths = sorted({each.length for row in rows for each in row.lengths})
    with canvas("retrieval", 9.4, 3.2, 1) as (axes, render):
        axis = axes[0]
        for number, row in enumerate(rows):
            # Shifted a little, so that the whiskers of models with similar scores can be distinguished.
            shift = 1 + 0.02 * (number - (len(rows) - 1) / 2)
            axis.errorbar(
                [each.length * shift for each in row.lengths],
                [100 * each.score.mean for each in row.lengths],
                yerr=[
                    # Rounding can put the end of an interval slightly beyond the mean.
                    [max(0.0, 100 * (each.score.mean - each.score.low)) for each in row.lengths],
                    [max(0.0, 100 * (each.score.high - each.score.mean)) for each in row.lengths],
                ],
                color=PALETTE[number % len(PALETTE)],
                marker="o",
                markersize=4,
                linewidth=1.6,
                elinewidth=1.0,
                capsize=2.5,
                label=row.model,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axis.minorticks_off()
        axis.set_ylim(0, 105)
        axis.set_xlabel("length (tokens)")
        axis.set_ylabel("recall (%)")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(rows), 5), borderaxespad=0.2)
        return render()


def thin(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `CURVE_POINTS` points: means of equally long runs of neighbours."""
    if len(points) <= CURVE_POINTS:
        return list(points)
    edges = [round(i * len(points) / CURVE_POINTS) for i in range(CURVE_POINTS + 1)]
    pieces = [points[a:b] for a, b in pairwise(edges)]
    return [(sum(s for s, _ in p) / len(p), sum(v for _, v in p) / len(p)) for p in pieces]


def smooth(values: Sequence[float], share: float = SMOOTHING_SHARE) -> list[float]:
    """Exponential moving average over about `share` of the curve, with Adam's bias correction at the start."""
    keep = 1 - 1 / max(1.0, share * len(values))
    average, weight, out = 0.0, 0.0, []
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(average / weight)
    return out


def _loss_panel(axis: Any, points: Sequence[tuple[int, float]]) -> None:
    steps, losses = zip(*thin(points), strict=True)
    if len(points) > 1 / SMOOTHING_SHARE:
        axis.plot(steps, losses, color=PALETTE[5], linewidth=0.8, alpha=0.7, label="each step")
        axis.plot(steps, smooth(losses), color=PALETTE[0], linewidth=1.8, label="smoothed")
        axis.legend(loc="upper right")
    else:
        axis.plot(steps, losses, color=PALETTE[0], linewidth=1.6, marker="o", markersize=2.5)
    axis.set_title("training loss (nats/token)")


def _validation_panel(axis: Any, history: History, sources: Sequence[str]) -> None:
    for source, points in history.validation.items():
        if points:
            colour = PALETTE[list(sources).index(source) % len(PALETTE)]
            axis.plot(*zip(*thin(points), strict=True), color=colour, marker="o", markersize=3, label=source)
    axis.set_title("validation loss (nats/token)")
    axis.legend(loc="best", ncols=2, handlelength=1.2, columnspacing=0.8)


@contextmanager
def canvas(
    seed: str, width: float, height: float, columns: int
) -> Iterator[tuple[list[Any], Callable[[], str]]]:
    """`columns` axes side by side (sizes in inches) and the function that renders them."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": seed}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)

        def render() -> str:
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            return inline(buffer.getvalue())

        yield list(figure.subplots(1, columns, squeeze=False)[0]), render
