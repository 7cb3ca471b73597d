"""Tables and figures of `analyze direction`: the paper's bars of cosines, with what chance would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prism.analysis.figures import (
    FULL_WIDTH,
    HALF_WIDTH,
    INK,
    PALETTE,
    Drawing,
    shared_legend,
    whole_number_axis,
)
from megatron_prism.analysis.view import View
from megatron_prism.analysis.views.words import COLOURS, DASH, fraction, part_name
from megatron_prism.platform.text_table import Table

OVERALL = "Overall (wtd avg)"
# Figures and the wide table show so many pairs; the document has all of them.
SHOWN = 6


def view(document: Mapping[str, Any]) -> View:
    """The overall cosines with their chance levels, those of sub-components, and both as figures."""
    pairs, base = document["pairs"], document["base"]["model"]
    return View(
        [overall_table(pairs, base), *(sub_component_table(pair, base) for pair in pairs[:SHOWN])],
        {"cosine": _bars(pairs[:SHOWN], base), "cosine_by_layer": _by_layer(pairs[:SHOWN], base)},
    )


def overall_table(pairs: Sequence[Mapping[str, Any]], base: str) -> Table:
    """One row for each pair of updates."""
    rows = []
    for pair in pairs:
        whole = pair["all"]
        rows.append(
            [
                title(pair),
                fraction(pair["overall"], 4),
                fraction(whole["cosine"], 4),
                fraction(whole["mean_cosine"], 4),
                _chance(whole["chance_std"]),
                _chance(whole["sign_flip_std"]),
                f"{whole['without_cosine']} of {whole['tensors']}",
            ]
        )
    columns = [
        *("updates", OVERALL.lower(), "concatenated", "mean of tensors"),
        *("chance: random", "random signs", "without a cosine"),
    ]
    heading = (
        f"cosine between updates from {base}; by chance it would be 0 with the standard deviations shown"
    )
    return Table(columns, rows, [False, *[True] * 6], heading)


def sub_component_table(pair: Mapping[str, Any], base: str) -> Table:
    """The cosine of each sub-component."""
    rows = [
        [
            part_name(name),
            f"{found['elements']:,}",
            fraction(found["cosine"], 4),
            fraction(found["mean_cosine"], 4),
            _chance(found["chance_std"]),
            _chance(found["sign_flip_std"]),
            f"{found['first_norm']:.3g}",
            f"{found['second_norm']:.3g}",
        ]
        for name, found in pair["sub_components"].items()
    ]
    columns = [
        *("sub-component", "elements", "concatenated", "mean of tensors"),
        *("chance: random", "random signs", f"|Δ| {pair['first']}", f"|Δ| {pair['second']}"),
    ]
    return Table(columns, rows, [False, *[True] * 7], f"cosine between updates from {base}: {title(pair)}")


def title(pair: Mapping[str, Any]) -> str:
    """The names of both models."""
    return f"{pair['first']}, {pair['second']}"


def _bars(pairs: Sequence[Mapping[str, Any]], base: str) -> Drawing:
    names = list(pairs[0]["sub_components"])

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        height = 0.8 / len(pairs)
        for number, pair in enumerate(pairs):
            shown = [pair["sub_components"][name] for name in names]
            values = [*(found["cosine"] for found in shown), pair["overall"]]
            # The overall bar stands apart from those it is the mean of.
            rows = [*range(len(names)), len(names) + 0.4]
            places = [row + (number - (len(pairs) - 1) / 2) * height for row in rows]
            colour = PALETTE[number % len(PALETTE)]
            axis.barh(
                places, [value or 0.0 for value in values], height * 0.88, color=colour, label=title(pair)
            )
            chance = [
                2 * max(found["chance_std"], found["sign_flip_std"] or 0.0) for found in (*shown, pair["all"])
            ]
            for place, value, spread in zip(places, values, chance, strict=True):
                text = "no update" if value is None else f"{value:.3f}".replace("-", "−")
                side = -1 if (value or 0) < 0 else 1
                axis.annotate(
                    text,
                    (side * max(abs(value or 0), spread), place),
                    (3 * side, 0),
                    textcoords="offset points",
                    va="center",
                    ha="left" if side > 0 else "right",
                    fontsize=7,
                )
            axis.errorbar(
                [0.0] * len(places),
                places,
                xerr=chance,
                fmt="none",
                ecolor=INK,
                elinewidth=1.2,
                capsize=1.5,
                label="chance: 0 ± 2 std" if number == len(pairs) - 1 else None,
            )
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_yticks(rows, [*map(part_name, names), OVERALL])
        axis.get_yticklabels()[-1].set_fontweight("bold")
        axis.margins(y=0.02)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        # Room for the numbers beside the bars.
        left, right = axis.get_xlim()
        room = 0.16 * (right - left)
        axis.set_xlim(left - room if left < -0.15 * right else left, right + room)
        axis.set_xlabel(f"cosine between updates from {base}")
        figure.legend(loc="outside upper left", ncols=min(3, len(pairs) + 1))

    each = max(0.22, 0.11 * len(pairs))
    return Drawing(
        FULL_WIDTH * 0.72,
        1.2 + each * (len(names) + 1),
        draw,
        "Cosine between the concatenated updates of each sub-component, and their mean weighted by parameters. The "
        "black marks at 0 are two standard deviations of chance.",
    )


def _by_layer(pairs: Sequence[Mapping[str, Any]], base: str) -> Drawing:
    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
        for axis, pair in zip(axes, pairs, strict=True):
            for component, colour in COLOURS.items():
                points = [
                    (row["layer"], row[component]["cosine"])
                    for row in pair["layers"]
                    if component in row and row[component]["cosine"] is not None
                ]
                if points:
                    axis.plot(
                        *zip(*points, strict=True), color=colour, marker="o", markersize=3, label=component
                    )
            axis.axhline(0, color=INK, linewidth=0.8)
            axis.set_title(title(pair))
            axis.set_xlabel("layer")
            whole_number_axis(axis.xaxis)
        axes[0].set_ylabel(f"cosine between updates\nfrom {base}")
        shared_legend(figure, axes)

    width = max(HALF_WIDTH * 1.2, min(FULL_WIDTH * 1.5, 2.6 * len(pairs)))
    return Drawing(width, 2.9, draw, "Cosine between the updates by layer and component.")


def _chance(value: float | None) -> str:
    return DASH if value is None else f"{value:.2g}"
