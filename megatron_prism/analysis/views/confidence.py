"""Table and figure of `analyze confidence`, in the form of the paper's Table 15."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prism.analysis.figures import FULL_WIDTH, HALF_WIDTH, INK, PALETTE, Drawing
from megatron_prism.analysis.view import View
from megatron_prism.analysis.views.words import DASH, rate
from megatron_prism.platform.text_table import Table

# Kind of answers -> its colour: blue for all, green for correct, orange for incorrect ones.
KINDS = {"all": PALETTE[0], "correct": PALETTE[2], "incorrect": PALETTE[1]}
NAMES = {"all": "overall", "correct": "correct", "incorrect": "incorrect"}
# Suites beside each other, and models in all of them: more bars would be too narrow for their numbers.
MOST_IN_A_ROW, MOST_MODELS_IN_A_ROW = 3, 16


def view(document: Mapping[str, Any]) -> View:
    """Table 15 with intervals, what separates right from wrong answers, and the paper's bars."""
    return View(
        [_lengths_and_confidence(document), _separation(document)],
        {"confidence": _bars(document)},
    )


def _lengths_and_confidence(document: Mapping[str, Any]) -> Table:
    rows = []
    for suite in document["suites"]:
        for model in document["models"]:
            found = model["suites"][suite]
            samples = found["responses"] / found["problems"]
            rows.append(
                [
                    suite,
                    model["model"],
                    f"{found['problems']:,} x {samples:g}",
                    rate(found["pass_rate"]),
                    DASH if found["tokens"]["median"] is None else f"{found['tokens']['median']:,.0f}",
                    f"{100 * found['truncated']:.0f}",
                    *(_with_interval(found["nlp"][kind]["of_responses"]) for kind in KINDS),
                ]
            )
    columns = [
        *("suite", "model", "problems", "pass rate (%)", "median length", "truncated (%)"),
        *("NLP", "NLP, correct", "NLP, incorrect"),
    ]
    title = (
        f"mean negative log-probability per token, not an entropy; {_percent_text(document['confidence'])} % "
        f"intervals, clustered by problem; {DASH}: fewer than {document['least_problems']} problems"
    )
    return Table(columns, rows, [False, False, *[True] * 7], title)


def _separation(document: Mapping[str, Any]) -> Table:
    rows = [
        [
            suite,
            model["model"],
            *(_plain(model["suites"][suite]["nlp"][kind]["of_tokens"]) for kind in KINDS),
            _with_interval(model["suites"][suite]["incorrect_minus_correct"]),
            _with_interval(model["suites"][suite]["auroc"]),
        ]
        for suite in document["suites"]
        for model in document["models"]
    ]
    columns = [
        *("suite", "model", "per token", "per token, correct", "per token, incorrect"),
        *("incorrect - correct", "AUROC"),
    ]
    title = (
        "NLP over all tokens alike (long answers weigh more), and whether an answer's own NLP tells right from wrong "
        "(AUROC 0.5: no)"
    )
    return Table(columns, rows, [False, False, *[True] * 5], title)


def _bars(document: Mapping[str, Any]) -> Drawing:
    suites, models = document["suites"], document["models"]
    columns = max(1, min(len(suites), MOST_IN_A_ROW, MOST_MODELS_IN_A_ROW // len(models)))
    lines = -(-len(suites) // columns)

    def draw(figure: Any) -> None:
        from matplotlib.patches import Patch

        grid = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[1.6, 1] * lines)
        for axis in grid.flat:
            axis.set_visible(False)
        for number, suite in enumerate(suites):
            line, column = divmod(number, columns)
            above, below = grid[2 * line][column], grid[2 * line + 1][column]
            _nlp_panel(above, models, suite)
            _length_panel(below, models, suite)
            above.set_visible(True)
            below.set_visible(True)
            if column == 0:
                above.set_ylabel("mean NLP (nats)")
                below.set_ylabel("median tokens")
        # Not the bars' own handles: a panel may have no bar of a kind.
        handles = [Patch(color=colour, label=NAMES[kind]) for kind, colour in KINDS.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))

    wide = columns > 1 or len(models) > 4
    caption = (
        "Mean negative log-probability of the sampled tokens, overall and of correct and incorrect answers, with "
        f"{_percent_text(document['confidence'])} % intervals, and the median length of an answer. No bar: answers of "
        f"this kind to fewer than {document['least_problems']} problems."
    )
    return Drawing(FULL_WIDTH if wide else HALF_WIDTH, 0.5 + 3.5 * lines, draw, caption)


def _nlp_panel(axis: Any, models: Sequence[Mapping[str, Any]], suite: str) -> None:
    width = 0.8 / len(KINDS)
    highest: float = 0
    for number, (kind, colour) in enumerate(KINDS.items()):
        means = [model["suites"][suite]["nlp"][kind]["of_responses"] for model in models]
        shift = (number - 1) * width
        shown = [(place + shift, mean) for place, mean in enumerate(means) if mean is not None]
        axis.bar(
            [place for place, _ in shown],
            [mean["value"] for _, mean in shown],
            width * 0.92,
            color=colour,
        )
        known = [(place, mean) for place, mean in shown if mean["low"] is not None]
        if known:
            axis.errorbar(
                [place for place, _ in known],
                [mean["value"] for _, mean in known],
                yerr=[
                    [mean["value"] - mean["low"] for _, mean in known],
                    [mean["high"] - mean["value"] for _, mean in known],
                ],
                fmt="none",
                ecolor=INK,
                elinewidth=0.9,
                capsize=2,
            )
        for place, mean in enumerate(means):
            top = 0.0 if mean is None else mean["high"] or mean["value"]
            highest = max(highest, top)
            axis.annotate(
                f" {_plain(mean)}",
                (place + shift, top),
                ha="center",
                va="bottom",
                fontsize=6,
                color=INK,
                rotation=0 if mean is None else 90,
            )
    axis.set_title(suite)
    axis.set_ylim(0, 1.25 * highest or 1)
    _model_ticks(axis, ["" for _ in models])


def _length_panel(axis: Any, models: Sequence[Mapping[str, Any]], suite: str) -> None:
    lengths = [model["suites"][suite]["tokens"]["median"] or 0 for model in models]
    axis.bar(range(len(models)), lengths, 0.8 * 0.92, color=PALETTE[5])
    for place, length in enumerate(lengths):
        axis.text(place, length, f"{length:,.0f}", ha="center", va="bottom", fontsize=7.5, color=INK)
    axis.set_ylim(0, 1.2 * max(*lengths, 1))
    _model_ticks(axis, [model["model"] for model in models])


def _model_ticks(axis: Any, names: Sequence[str]) -> None:
    crowded = len(names) * max(map(len, names), default=0) > 24
    axis.set_xticks(
        range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center"
    )
    axis.tick_params(axis="x", length=0, labelsize=8)
    axis.grid(axis="x", visible=False)
    axis.set_xlim(-0.6, len(names) - 0.4)


def _percent_text(share: float) -> str:
    return f"{100 * share:g}"


def _with_interval(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return DASH
    if estimate["low"] is None:
        return _plain(estimate)
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def _plain(estimate: Mapping[str, Any] | None) -> str:
    return DASH if estimate is None else f"{estimate['value']:.3f}"
