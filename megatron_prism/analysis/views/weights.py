"""Tables and figures of `analyze weights`, in the forms of the paper's Tables 12, 22 and 23."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prism.analysis.figures import (
    FULL_WIDTH,
    INK,
    PALETTE,
    Drawing,
    label_log_axis,
    shared_legend,
    whole_number_axis,
)
from megatron_prism.analysis.view import View
from megatron_prism.analysis.views.words import COLOURS, DASH, delta, part_name, percent
from megatron_prism.platform.text_table import Table


def view(document: Mapping[str, Any]) -> View:
    """Tables 12, 22 and 23 in form, what the stored precision hides, and figures by layer and sub-component."""
    models = document["models"]
    base = document["base"]["model"]
    return View(
        [
            component_table(models, base, _main(document)),
            threshold_table(models, base, document["thresholds"]),
            sub_component_table(models, base, _main(document)),
            floor_table(models, base),
        ],
        {
            "delta_by_layer": _by_layer(models, base),
            "changed_by_sub_component": _by_sub_component(models, base, _main(document)),
            "sparsity_by_threshold": _by_threshold(models, base, document["thresholds"]),
        },
    )


def component_table(models: Sequence[Mapping[str, Any]], base: str, main: int) -> Table:
    """The paper's Table 12: delta by component, with both meanings of total and of sparsity."""
    components = _keys(models, "components")
    rows = []
    for model in models:
        found = model["components"]
        whole = model["all"]
        attention = found.get("attention")
        rows.append(
            [
                f"{base} → {model['model']}",
                *(delta(found[name]["mean_delta"]) if name in found else DASH for name in components),
                delta(whole["mean_delta"]),
                delta(whole["norm_delta"]),
                percent(whole["unchanged"][main]),
                percent(attention["unchanged"][main]) if attention else DASH,
            ]
        )
    columns = [
        *("transition", *components),
        *("total (mean of tensors)", "total (norm ratio)", "sparsity (%)", "of attention (%)"),
    ]
    title = (
        "delta = ||W' − W|| / ||W||, the mean over the tensors of a component; sparsity: elements that changed by "
        "less than 1 %"
    )
    return Table(columns, rows, [False, *[True] * (len(columns) - 1)], title)


def threshold_table(models: Sequence[Mapping[str, Any]], base: str, thresholds: Sequence[float]) -> Table:
    """The paper's Table 22: elements that changed by less than each threshold."""
    rows = [
        [f"{100 * threshold:g} %", *(percent(model["all"]["unchanged"][index]) for model in models)]
        for index, threshold in enumerate(thresholds)
    ]
    rows.append(["equal", *(percent(model["all"]["equal"]) for model in models)])
    rows.append(["|Δw| ≤ 1e-5 in bf16", *(percent(model["all"]["unchanged_absolute"]) for model in models)])
    columns = ["threshold", *(f"{base} → {model['model']}" for model in models)]
    return Table(
        columns, rows, [False, *[True] * len(models)], "elements (%) that changed by less than a threshold"
    )


def sub_component_table(models: Sequence[Mapping[str, Any]], base: str, main: int) -> Table:
    """The paper's Table 23: the share of each sub-component's elements that changed by 1 % or more."""
    rows = [
        [
            part_name(name),
            *(
                percent(1 - model["sub_components"][name]["unchanged"][main])
                if name in model["sub_components"]
                else DASH
                for model in models
            ),
        ]
        for name in _keys(models, "sub_components")
    ]
    columns = ["sub-component", *(f"{base} → {model['model']}" for model in models)]
    return Table(columns, rows, [False, *[True] * len(models)], "elements (%) that changed by 1 % or more")


def floor_table(models: Sequence[Mapping[str, Any]], base: str) -> Table:
    """What rounding alone would show, and what of the change bf16 would not show."""
    rows = []
    for model in models:
        whole = model["all"]
        times = whole["norm_delta"] / whole["floor"] if whole["floor"] and whole["norm_delta"] else None
        rows.append(
            [
                f"{base} → {model['model']}",
                model["stored_as"],
                delta(whole["norm_delta"]),
                delta(whole["floor"]),
                DASH if times is None else f"{times:.3g}",
                _lost(whole),
                f"{whole['zeros_kept']:,}",
                f"{whole['zeros_changed']:,}",
            ]
        )
    columns = [
        *("transition", "stored as", "delta", "rounding floor", "delta / floor"),
        *("changes lost in bf16 (%)", "zeros kept", "zeros changed"),
    ]
    title = "precision: the delta of rounding alone, and changed elements that would be equal in bf16"
    return Table(columns, rows, [False, False, *[True] * 6], title)


def _lost(whole: Mapping[str, Any]) -> str:
    if not whole["norm_delta"]:
        return DASH
    return "not known" if whole["vanished"] is None else percent(whole["vanished"])


def _by_layer(models: Sequence[Mapping[str, Any]], base: str) -> Drawing:
    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
        for axis, model in zip(axes, models, strict=True):
            for component, colour in COLOURS.items():
                points = [
                    (row["layer"], row[component]["mean_delta"])
                    for row in model["layers"]
                    if component in row and row[component]["mean_delta"]
                ]
                if points:
                    axis.plot(
                        *zip(*points, strict=True), color=colour, marker="o", markersize=3, label=component
                    )
            axis.set_title(f"{base} → {model['model']}")
            if not model["all"]["norm_delta"]:
                axis.text(0.5, 0.5, "no change", transform=axis.transAxes, ha="center", color=INK)
            axis.set_xlabel("layer")
            axis.set_yscale("log")
            label_log_axis(axis.yaxis)
            whole_number_axis(axis.xaxis)
        axes[0].set_ylabel("delta, mean of tensors")
        shared_legend(figure, axes)

    width = max(FULL_WIDTH / 2, min(FULL_WIDTH * 1.5, 2.6 * len(models)))
    return Drawing(width, 2.9, draw, "Relative change of the weights by layer and component, on a log scale.")


def _by_sub_component(models: Sequence[Mapping[str, Any]], base: str, main: int) -> Drawing:
    names = _keys(models, "sub_components")

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        height = 0.8 / len(models)
        for number, model in enumerate(models):
            found = model["sub_components"]
            places = [index + (number - (len(models) - 1) / 2) * height for index in range(len(names))]
            changed = [100 * (1 - found[name]["unchanged"][main]) if name in found else 0 for name in names]
            colour = PALETTE[number % len(PALETTE)]
            axis.barh(places, changed, height * 0.9, color=colour, label=f"{base} → {model['model']}")
            for place, value in zip(places, changed, strict=True):
                axis.text(value + 1, place, f"{value:.1f}", va="center", fontsize=7)
        axis.set_yticks(range(len(names)), [part_name(name) for name in names])
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set_xlim(0, 108)
        axis.set_xlabel("elements that changed by 1 % or more (%)")
        figure.legend(loc="outside upper left", ncols=min(3, len(models)))

    each = max(0.22, 0.14 * len(models))
    return Drawing(FULL_WIDTH, 1.0 + each * len(names), draw, "Changed elements of each sub-component.")


def _by_threshold(models: Sequence[Mapping[str, Any]], base: str, thresholds: Sequence[float]) -> Drawing:
    def draw(figure: Any) -> None:
        axis = figure.subplots()
        percent = [100 * threshold for threshold in thresholds]
        for number, model in enumerate(models):
            axis.plot(
                percent,
                [100 * share for share in model["all"]["unchanged"]],
                color=PALETTE[number % len(PALETTE)],
                marker="o",
                markersize=4,
                label=f"{base} → {model['model']}",
            )
        axis.set_xscale("log")
        axis.set_xticks(percent, [f"{value:g}" for value in percent])
        axis.minorticks_off()
        axis.set_ylim(0, 102)
        axis.set_xlabel("threshold of the relative change (%)")
        axis.set_ylabel("unchanged elements (%)")
        figure.legend(loc="outside upper left", ncols=min(2, len(models)))

    return Drawing(FULL_WIDTH / 2 + 0.6, 3.0, draw, "Update sparsity against its threshold.")


def _main(document: Mapping[str, Any]) -> int:
    thresholds: list[float] = document["thresholds"]
    return thresholds.index(document["main_threshold"])


def _keys(models: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    return list(dict.fromkeys(name for model in models for name in model[part]))
