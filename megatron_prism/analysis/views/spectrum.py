"""Tables and figures of `analyze spectrum`: how many directions an update has, beside noise of the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prism.analysis.figures import FULL_WIDTH, INK, PALETTE, Drawing, label_log_axis, shared_legend
from megatron_prism.analysis.view import View
from megatron_prism.analysis.views.words import DASH, fraction, part_name, percent
from megatron_prism.platform.text_table import Table

# Figures have a panel for each of so many models, and bars for so many pairs.
SHOWN = 4
STYLES = ("-", "--", ":")


def view(document: Mapping[str, Any]) -> View:
    """The ranks and shares of each model's updates, and the angles between those of each two models."""
    base, top = document["base"]["model"], document["top"]
    models, pairs = document["models"], document["pairs"]
    drawings = {
        "singular_values": _decays(models[:SHOWN], base, top),
        "top_shares": _shares(models[:SHOWN], document["share_sizes"]),
    }
    if pairs:
        drawings["subspace_overlap"] = _overlaps(pairs[:SHOWN])
    return View(
        [
            *(rank_table(model, base, document["share_sizes"]) for model in models),
            *(angle_table(pair, base) for pair in pairs),
        ],
        drawings,
    )


def rank_table(model: Mapping[str, Any], base: str, sizes: Sequence[int]) -> Table:
    """Means over the matrices of each sub-component; numbers of noise of the same shapes stand in brackets."""
    rows = []
    for name, found in {**model["sub_components"], "all": model["all"]}.items():
        rows.append(
            [
                part_name(name),
                f"{found['matrices']}",
                _number(found["full_rank"]),
                _beside(found["share"][0], found["random_share"][0], percent),
                _beside(found["share"][-1], found["random_share"][-1], percent),
                _beside(found["stable_rank"], found["random_stable_rank"], _number),
                _beside_range(found),
                *(_number(each) for each in found["rank_at"]),
                DASH if found["residual"] is None else f"{found['residual']:.0e}",
            ]
        )
    columns = [
        *("sub-component", "matrices", "full rank", "in 1 (%)", f"in {sizes[-1]} (%)", "stable rank"),
        *("effective rank", "rank 90 %", "rank 95 %", "rank 99 %", "residual"),
    ]
    title = (
        f"update {base} → {model['model']}: means over matrices; in 1, in {sizes[-1]}: energy in so many "
        "leading directions; in brackets: noise of the same shape"
    )
    return Table(columns, rows, [False, *[True] * (len(columns) - 1)], title)


def angle_table(pair: Mapping[str, Any], base: str) -> Table:
    """Overlaps of the leading directions of two updates."""
    rows = [
        [
            part_name(name),
            f"{found['matrices']}",
            _number(found["directions"]),
            *(
                cell
                for side in ("left", "right")
                for cell in (
                    fraction(found[f"{side}_overlap"]),
                    fraction(found[f"{side}_chance"]),
                    fraction(found[f"{side}_largest_cosine"]),
                )
            ),
        ]
        for name, found in {**pair["sub_components"], "all": pair["all"]}.items()
    ]
    columns = [
        *("sub-component", "matrices", "directions", "output overlap", "by chance", "largest cosine"),
        *("input overlap", "by chance", "largest cosine"),
    ]
    title = (
        f"leading directions of the updates {base} → {pair['first']} and {base} → {pair['second']}: overlap is the "
        "mean squared cosine of the principal angles"
    )
    return Table(columns, rows, [False, *[True] * (len(columns) - 1)], title)


def _decays(models: Sequence[Mapping[str, Any]], base: str, top: int) -> Drawing:
    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
        for axis, model in zip(axes, models, strict=True):
            shown = [(name, found) for name, found in model["sub_components"].items() if found["decay"]]
            for number, (name, found) in enumerate(shown):
                colour = PALETTE[number % len(PALETTE)]
                style = STYLES[number // len(PALETTE) % len(STYLES)]
                places = range(1, len(found["decay"]) + 1)
                axis.plot(places, found["decay"], color=colour, linestyle=style, label=part_name(name))
            noise = [found["random_decay"] for _, found in shown if len(found["random_decay"]) == top]
            if noise:
                # One band for all shapes: their noise differs little.
                lowest, highest = (list(map(edge, zip(*noise, strict=True))) for edge in (min, max))
                axis.fill_between(range(1, top + 1), lowest, highest, color=INK, alpha=0.2, label="noise")
            axis.set_title(f"{base} → {model['model']}")
            axis.set_xlabel("singular value")
            axis.set_yscale("log")
            label_log_axis(axis.yaxis)
        axes[0].set_ylabel("relative to the largest")
        shared_legend(figure, axes)

    width = max(FULL_WIDTH * 0.6, min(FULL_WIDTH * 1.5, 3.0 * len(models)))
    caption = (
        "Singular values of the updates relative to the largest, means over layers; grey: independent noise of the "
        "same shapes (Marchenko-Pastur)."
    )
    return Drawing(width, 3.3, draw, caption)


def _shares(models: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Drawing:
    names = [name for name, found in models[0]["sub_components"].items() if found["matrices"]]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        height = 0.8 / len(models)
        for number, model in enumerate(models):
            found = [*(model["sub_components"][name] for name in names), model["all"]]
            places = [row + (number - (len(models) - 1) / 2) * height for row in _rows(names)]
            values = [100 * (each["share"][-1] or 0) for each in found]
            colour = PALETTE[number % len(PALETTE)]
            axis.barh(places, values, height * 0.88, color=colour, label=model["model"])
            noise = [100 * (each["random_share"][-1] or 0) for each in found]
            last = number == len(models) - 1
            axis.scatter(
                noise, places, marker="|", s=60, color=INK, zorder=3, label="noise" if last else None
            )
            for place, value, level in zip(places, values, noise, strict=True):
                _write(axis, f"{value:.1f}", max(value, level), place)
        _name_rows(axis, [*map(part_name, names), "all"], _rows(names))
        axis.set_xlabel(f"energy of the update in its {sizes[-1]} leading directions (%)")
        axis.set_xlim(0, min(112, 1.16 * axis.get_xlim()[1]))
        figure.legend(loc="outside upper left", ncols=min(4, len(models) + 1))

    caption = (
        f"Share of the squared norm of the update in the {sizes[-1]} leading directions of each matrix, means over "
        "layers; marks: independent noise of the same shapes."
    )
    return Drawing(FULL_WIDTH * 0.72, _height(models, names), draw, caption)


def _overlaps(pairs: Sequence[Mapping[str, Any]]) -> Drawing:
    names = list(pairs[0]["sub_components"])

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        height = 0.8 / len(pairs)
        for axis, side, meaning in zip(axes, ("left", "right"), ("output", "input"), strict=True):
            for number, pair in enumerate(pairs):
                found = [*(pair["sub_components"][name] for name in names), pair["all"]]
                places = [row + (number - (len(pairs) - 1) / 2) * height for row in _rows(names)]
                values = [each[f"{side}_overlap"] or 0 for each in found]
                chance = [each[f"{side}_chance"] or 0 for each in found]
                label = f"{pair['first']}, {pair['second']}"
                axis.barh(places, values, height * 0.88, color=PALETTE[number % len(PALETTE)], label=label)
                last = number == len(pairs) - 1
                axis.scatter(
                    chance, places, marker="|", s=60, color=INK, zorder=3, label="by chance" if last else None
                )
                for place, value, level in zip(places, values, chance, strict=True):
                    _write(axis, f"{value:.2f}", max(value, level), place)
            axis.set_title(f"{meaning} directions")
            axis.set_xlabel("overlap of the leading directions")
            axis.set_xlim(0, min(1.16, 1.2 * axis.get_xlim()[1]))
            axis.grid(axis="y", visible=False)
        _name_rows(axes[0], [*map(part_name, names), "all"], _rows(names))
        shared_legend(figure, axes, most=4)

    caption = (
        "Mean squared cosine of the principal angles between the leading directions of two updates, means over layers; "
        "marks: random directions."
    )
    return Drawing(FULL_WIDTH, _height(pairs, names), draw, caption)


def _rows(names: Sequence[str]) -> list[float]:
    """The places of bars: one for each name, and one apart for all of them."""
    return [*map(float, range(len(names))), len(names) + 0.4]


def _height(groups: Sequence[Any], names: Sequence[str]) -> float:
    return 1.2 + max(0.22, 0.11 * len(groups)) * (len(names) + 1)


def _name_rows(axis: Any, names: Sequence[str], rows: Sequence[float]) -> None:
    axis.set_yticks(rows, names)
    axis.get_yticklabels()[-1].set_fontweight("bold")
    axis.margins(y=0.02)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def _write(axis: Any, text: str, value: float, place: float) -> None:
    axis.annotate(text, (value, place), (4, 0), textcoords="offset points", va="center", fontsize=7)


def _beside(value: float | None, noise: float | None, write: Any) -> str:
    return f"{write(value)} ({write(noise)})"


def _beside_range(found: Mapping[str, Any]) -> str:
    low, high = found["effective_rank_low"], found["effective_rank_high"]
    own = _number(low) if found["effective_rank"] is not None else f"{_number(low)} to {_number(high)}"
    return f"{own} ({_number(found['random_effective_rank'])})"


def _number(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
