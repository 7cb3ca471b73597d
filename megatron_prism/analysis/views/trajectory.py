"""Tables and figures of `analyze trajectory`: the distance from the start, the active set and its overlaps, by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prism.analysis.figures import FULL_WIDTH, INK, PALETTE, Drawing, shared_legend
from megatron_prism.analysis.view import View
from megatron_prism.analysis.views.words import COLOURS, DASH, delta, fraction, part_name, percent
from megatron_prism.platform.text_table import Table

RULES = {"relative": "changed by 1 % or more", "exact": "changed at all"}


def view(document: Mapping[str, Any]) -> View:
    """Steps, components by step, and the overlap with other runs."""
    steps, others = document["trajectory"], document["against"]
    start = document["base"]["model"]
    drawings = {}
    if len(steps) > 1:
        drawings = {"distance_by_step": _by_step(steps), "overlap_by_step": _overlap(steps)}
    if others:
        drawings["overlap_between_runs"] = _between_runs(others, steps[-1]["step"])
    return View(
        [
            step_table(steps, start),
            component_table(steps, start),
            *(against_table(other, steps[-1]["step"]) for other in others),
        ],
        drawings,
    )


def step_table(steps: Sequence[Mapping[str, Any]], start: str) -> Table:
    """One row for each step, of all parameters together."""
    rows = []
    for step in steps:
        whole = step["all"]
        previous, last = (
            whole[key]["relative"] if whole[key] else None for key in ("with_previous", "with_last")
        )
        rows.append(
            [
                f"{step['step']:,}",
                delta(whole["norm_delta"]),
                percent(whole["share_of_final"]),
                percent(whole["active"], 2),
                percent(whole["active_exact"], 2),
                percent(previous["of_first"]) if previous else DASH,
                fraction(previous["jaccard"]) if previous else DASH,
                fraction(last["jaccard"]) if last else DASH,
                fraction(last["chance_jaccard"]) if last else DASH,
                fraction(last["size_chance_jaccard"]) if last else DASH,
            ]
        )
    columns = [
        *("step", "delta (norm ratio)", "% of final L2", "active %", "changed at all %", "% kept"),
        *("Jaccard, previous", "Jaccard, last", "by chance", "chance given |w|"),
    ]
    title = (
        f"change from {start}; active: changed by 1 % or more; kept: of those active at the step before; "
        "Jaccard: |A ∩ B| / |A ∪ B|"
    )
    return Table(columns, rows, [True] * len(columns), title)


def component_table(steps: Sequence[Mapping[str, Any]], start: str) -> Table:
    """Distance and active set of each component by step."""
    components = list(steps[0]["components"])
    rows = [
        [
            f"{step['step']:,}",
            *(delta(step["components"][name]["norm_delta"]) for name in components),
            *(percent(step["components"][name]["active"], 2) for name in components),
        ]
        for step in steps
    ]
    columns = [
        "step",
        *(f"delta {name}" for name in components),
        *(f"active % {name}" for name in components),
    ]
    title = f"change from {start} by component: delta = ||W' − W|| / ||W|| of all its weights together"
    return Table(columns, rows, [True] * len(columns), title)


def against_table(other: Mapping[str, Any], step: int) -> Table:
    """The overlap of the last step's active set with that of another run."""
    rows = []
    for rule, meaning in RULES.items():
        for name, found in {**other["sub_components"], "all": other["all"]}.items():
            sets = found["overlap"][rule]
            rows.append(
                [
                    meaning,
                    part_name(name),
                    percent(sets["first"] / found["elements"], 2),
                    percent(sets["second"] / found["elements"], 2),
                    percent(sets["of_first"]),
                    percent(sets["of_second"]),
                    fraction(sets["jaccard"]),
                    fraction(sets["chance_jaccard"]),
                    fraction(sets["size_chance_jaccard"]),
                ]
            )
    columns = [
        *("active", "sub-component", "this run %", "other %", "of this run's %", "of other's %"),
        *("Jaccard", "by chance", "chance given |w|"),
    ]
    title = f"overlap of the active sets at step {step:,} with those of {other['model']}"
    return Table(columns, rows, [False, False, *[True] * 7], title)


def _by_step(steps: Sequence[Mapping[str, Any]]) -> Drawing:
    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for axis, key, scale in ((left, "norm_delta", 1), (right, "active", 100)):
            for component, colour in COLOURS.items():
                if component in steps[0]["components"]:
                    groups = [(step["step"], step["components"][component]) for step in steps]
                    _plot(axis, _from_zero(groups, key, scale), color=colour, marker="o", label=component)
            whole = [(step["step"], step["all"]) for step in steps]
            _plot(axis, _from_zero(whole, key, scale), color=INK, linestyle="--", label="all")
            axis.set_xlabel("step")
            axis.set_ylim(bottom=0)
        left.set_ylabel("L2 of the change / L2 of the start")
        right.set_ylabel("active set (% of elements)")
        shared_legend(figure, [left, right], most=7)

    caption = (
        "Relative change of the weights (left) and share of elements that changed by 1 % or more (right)."
    )
    return Drawing(FULL_WIDTH, 3.0, draw, caption)


def _overlap(steps: Sequence[Mapping[str, Any]]) -> Drawing:
    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        # A wide line shows beside a narrow one that lies on it.
        for rule, colour, width in zip(RULES, PALETTE, (2.8, 1.2), strict=False):
            overlap = _series(steps, "with_last", rule, "jaccard")
            _plot(left, overlap, color=colour, marker="o", linewidth=width, label=RULES[rule])
            chance = _series(steps, "with_last", rule, "size_chance_jaccard")
            _plot(left, chance, color=colour, linestyle="--", linewidth=width, label="by chance, given |w|")
            kept = _series(steps, "with_previous", rule, "of_first")
            _plot(right, kept, color=colour, marker="o", linewidth=width, label=RULES[rule])
        final = [(step["step"], step["all"]["share_of_final"]) for step in steps]
        known = [(step, share) for step, share in final if share is not None]
        _plot(right, known, color=INK, marker="s", label="share of the final L2")
        left.set_title("Overlap with the last step")
        left.set_ylabel("Jaccard index")
        right.set_title("Kept from the step before")
        right.set_ylabel("share")
        for axis in (left, right):
            axis.set_ylim(0, 1.05)
            axis.set_xlabel("step")
        shared_legend(figure, [left, right], most=3)

    caption = (
        "Left: overlap of each step's active set with that of the last step; dashed: of sets that are independent "
        "among weights of similar size. Right: the share of the active set of the step before that is still active, "
        "and the distance covered."
    )
    return Drawing(FULL_WIDTH, 3.2, draw, caption)


def _between_runs(others: Sequence[Mapping[str, Any]], step: int) -> Drawing:
    names = list(others[0]["sub_components"])

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        height = 0.8 / len(others)
        for number, other in enumerate(others):
            found = [*(other["sub_components"][name] for name in names), other["all"]]
            rows = [*range(len(names)), len(names) + 0.4]
            places = [row + (number - (len(others) - 1) / 2) * height for row in rows]
            values = [each["overlap"]["relative"]["jaccard"] for each in found]
            chance = [each["overlap"]["relative"]["size_chance_jaccard"] for each in found]
            colour = PALETTE[number % len(PALETTE)]
            axis.barh(
                places, [each or 0 for each in values], height * 0.88, color=colour, label=other["model"]
            )
            axis.scatter(
                [each or 0 for each in chance],
                places,
                marker="|",
                s=60,
                color=INK,
                zorder=3,
                label="by chance, given |w|" if number == len(others) - 1 else None,
            )
            for place, value, level in zip(places, values, chance, strict=True):
                text = "none active" if value is None else f"{value:.3f}"
                axis.annotate(
                    text,
                    (max(value or 0, level or 0), place),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
        axis.set_yticks(rows, [*map(part_name, names), "all"])
        axis.get_yticklabels()[-1].set_fontweight("bold")
        axis.margins(y=0.02)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set_xlim(0, 1.16 * axis.get_xlim()[1])
        axis.set_xlabel(f"Jaccard index of the active sets (step {step:,})")
        figure.legend(loc="outside upper left", ncols=min(4, len(others) + 1))

    each = max(0.22, 0.11 * len(others))
    caption = "Overlap of the elements that two runs from one start changed by 1 % or more."
    return Drawing(FULL_WIDTH * 0.72, 1.2 + each * (len(names) + 1), draw, caption)


def _from_zero(
    groups: Sequence[tuple[int, Mapping[str, Any]]], key: str, scale: float
) -> list[tuple[int, float]]:
    """(step, scaled value), with the start, at which nothing has changed."""
    return [(0, 0.0), *((step, scale * found[key]) for step, found in groups if found[key] is not None)]


def _series(steps: Sequence[Mapping[str, Any]], other: str, rule: str, key: str) -> list[tuple[int, float]]:
    """(step, value) where there is one: the first step has none before it, the last is not compared with itself."""
    overlaps = [(step["step"], step["all"][other]) for step in steps]
    return [(step, found[rule][key]) for step, found in overlaps if found and found[rule][key] is not None]


def _plot(axis: Any, points: Sequence[tuple[int, float]], **style: Any) -> None:
    if points:
        axis.plot(*zip(*points, strict=True), markersize=3.5, **style)
