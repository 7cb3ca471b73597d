"""Tables and figures of `analyze cka`, in the form of the paper's figures of section 10.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_prism.analysis.figures import (
    FULL_WIDTH,
    PALETTE,
    Drawing,
    label_log_axis,
    shared_legend,
    whole_number_axis,
)
from megatron_prism.analysis.view import View
from megatron_prism.analysis.views.words import DASH
from megatron_prism.platform.text_table import Table

# `pooled_states.FINAL_NORM`, which needs torch.
FINAL = "final norm"
# If a pair is above this everywhere, its line cannot be told from 1, and 1 - CKA is drawn too.
NEARLY_ONE = 0.99
# 1 - CKA of equal models is 0, which a log axis does not have.
SMALLEST = 1e-16
PANEL_HEIGHT, ROOM = 2.1, 0.6
# The lines of two pairs often lie on each other: a narrow, broken one shows the wide one under it.
LINES = ({"lw": 2.6, "alpha": 0.85}, {"lw": 1.3, "ls": "--"}, {"lw": 1.3}, {"lw": 1.3, "ls": ":"})
# Above so many points, a marker at each hides the line.
MARKED_POINTS = 12


def view(document: Mapping[str, Any]) -> View:
    """The minimum over the layers by set and pair, the layers at the end, and a panel for each set of inputs."""
    return View(
        [minimum_table(document), end_table(document), state_table(document)],
        {"cka_by_layer": by_layer(document)},
    )


def minimum_table(document: Mapping[str, Any]) -> Table:
    """The lowest CKA of each pair on each set, with what it has to be compared with."""
    rows = []
    for pair in document["pairs"]:
        least = pair["minimum"]
        if least is None:
            rows.append([pair["inputs"], _name(pair), *[DASH] * 7])
            continue
        point = next(each for each in pair["points"] if each["index"] == least["index"])
        rows.append(
            [
                *(pair["inputs"], _name(pair), _cka(least["cka"]), least["name"]),
                _std(point["bootstrap"]),
                _cka(point["unbiased"]),
                _cka(point["chance"]),
                _small(point["one_minus_cka"]),
                _cka(pair["mean"]),
            ]
        )
    columns = [
        *("inputs", "pair", "minimum", "at", "± std"),
        *("unbiased", "by chance", "1 − CKA", "mean of layers"),
    ]
    numeric = [False, False, True, False, *[True] * 5]
    settings = document["settings"]
    title = (
        f"the lowest CKA of the layers; std over {settings['resamples']} resamples of {settings['size']} of "
        f"{document['inputs'][0]['texts']} inputs"
    )
    return Table(columns, rows, numeric, title)


def end_table(document: Mapping[str, Any]) -> Table:
    """The embedding, the middle, and both meanings of "last layer"."""
    layers = document["models"][0]["layers"]
    middle = next(each for each in document["pairs"][0]["points"] if each["index"] == layers // 2)["name"]
    shown = list(dict.fromkeys(("embedding", middle, f"layer {layers - 1}", FINAL)))
    rows = []
    for pair in document["pairs"]:
        by_name = {each["name"]: each for each in pair["points"]}
        rows.append([pair["inputs"], _name(pair), *(_cka(by_name[name]["cka"]) for name in shown)])
    columns = ["inputs", "pair", *shown]
    title = (
        "CKA by place; the paper's last index is the final norm, and it has no index for the layer before it"
    )
    return Table(columns, rows, [False, False, *[True] * len(shown)], title)


def state_table(document: Mapping[str, Any]) -> Table:
    """How few directions hold the variance of the states, and how much of it is the length of a text."""
    rows = [
        [
            *(each["inputs"], each["model"]),
            DASH if each["effective_dimension"] is None else f"{each['effective_dimension']:.1f}",
            DASH if each["largest_feature"] is None else f"{100 * each['largest_feature']:.1f} %",
            _cka(each["length_cka"]),
        ]
        for each in document["states"]
        if each["name"] == FINAL
    ]
    columns = ["inputs", "model", "effective dimension", "largest feature", "CKA with 1/length"]
    title = f"the states at the {FINAL}: what decides their CKA"
    return Table(columns, rows, [False, False, True, True, True], title)


def by_layer(document: Mapping[str, Any]) -> Drawing:
    """One panel for each set: CKA against the paper's index with a band of one std; below it 1 - CKA if needed."""
    names = [each["name"] for each in document["inputs"]]
    pairs = document["pairs"]
    close = any(_all_above(pair, NEARLY_ONE) for pair in pairs)

    def draw(figure: Any) -> None:
        axes = figure.subplots(2 if close else 1, len(names), squeeze=False, sharex=True, sharey="row")
        for column, name in enumerate(names):
            mine = [pair for pair in pairs if pair["inputs"] == name]
            for number, pair in enumerate(mine):
                points = _drawn(pair)
                index = [each["index"] for each in points]
                colour = PALETTE[number % len(PALETTE)]
                style = {
                    **{"color": colour, "marker": "o" if len(index) <= MARKED_POINTS else "", "ms": 3},
                    **LINES[min(number, len(LINES) - 1)],
                }
                axes[0][column].plot(index, [each["cka"] for each in points], label=_name(pair), **style)
                banded = [each for each in points if each["bootstrap"]]
                axes[0][column].fill_between(
                    [each["index"] for each in banded],
                    [each["cka"] - each["bootstrap"]["std"] for each in banded],
                    [each["cka"] + each["bootstrap"]["std"] for each in banded],
                    color=colour,
                    alpha=0.18,
                    lw=0,
                )
                if close:
                    axes[1][column].plot(
                        index, [max(each["one_minus_cka"], SMALLEST) for each in points], **style
                    )
            axes[0][column].set_title(name)
            whole_number_axis(axes[-1][column].xaxis)
            axes[-1][column].set_xlabel("layer")
        axes[0][0].set_ylabel("CKA")
        if close:
            axes[1][0].set_yscale("log")
            label_log_axis(axes[1][0].yaxis, (1,))
            axes[1][0].set_ylabel("1 − CKA")
        figure.align_ylabels()
        shared_legend(figure, axes[0], most=3)

    below = " Below, 1 − CKA on a log scale." if close else ""
    caption = (
        "CKA between models by layer: 0 is the embedding, the last index the final norm. Bands: one standard deviation "
        f"of the bootstrap.{below}"
    )
    width = max(FULL_WIDTH / 2, min(FULL_WIDTH * 1.4, FULL_WIDTH / 3 * len(names)))
    return Drawing(width, ROOM + PANEL_HEIGHT * (2 if close else 1), draw, caption)


def _drawn(pair: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in pair["points"] if each["index"] is not None and each["cka"] is not None]


def _all_above(pair: Mapping[str, Any], bound: float) -> bool:
    drawn = _drawn(pair)
    return bool(drawn) and all(each["cka"] > bound for each in drawn)


def _name(pair: Mapping[str, Any]) -> str:
    return f"{pair['first']} – {pair['second']}"


def _cka(value: float | None) -> str:
    if value is None:
        return DASH
    shown = f"{value:.4f}"
    # Only what is equal to fp64's precision is shown as 1.
    return f"1 − {1 - value:.0e}" if shown == "1.0000" and 1 - value > 1e-14 else shown


def _std(bootstrap: Mapping[str, Any] | None) -> str:
    return DASH if bootstrap is None else _small(bootstrap["std"])


def _small(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.4f}" if value >= 1e-2 or value == 0 else f"{value:.1e}"
