"""Ours beside the published values of analyses, where a run is about a model of the paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prism.report.paper.analyses import Found
from megatron_prism.report.paper.form import DASH, Cell, Form, Line, difference, published_cell
from megatron_prism.report.paper.published import Published, PublishedRow, PublishedTable
from megatron_prism.report.paper.roles import BASE

# The parts of Table 23 and Figure 12 -> the beginnings of our sub-components' names.
PARTS = {
    "mamba.a_dt": ("mamba.A_log", "mamba.dt"),
    "embedding": ("embedding.", "head."),
    "norm": ("norm.",),
    # The figure's bar "Mamba: other" may leave out any of Mamba's tensors, so ours has no value for it.
    "mamba": (),
}
TOTALS = (("mean_delta", "Total (mean of tensors)"), ("norm_delta", "Total (ratio of norms)"))
MATH500 = "math500"
# A difference from a value below this says little without the ratio: 0.0001 from 0.0003.
SMALL = 0.01
# What the analysis measures -> the columns of Table 15.
ANSWERS = ("pass_rate", "median_length", "nlp", "nlp_correct", "nlp_incorrect")


def weights_beside(paper: Published, table: PublishedTable, model: str, found: Found) -> list[Form]:
    """Tables 12 and 13: the paper's Total beside both of ours, and its sparsity beside attention's and that of all."""
    document = found.document
    main = document["thresholds"].index(document["main_threshold"])
    forms = []
    for mine, row in _transitions(table, model, found):
        lines = []
        for column in table.columns:
            theirs = (paper, table, row, column)
            if column == "total":
                lines += [_line(label, mine["all"][key], theirs, 4) for key, label in TOTALS]
            elif column == "sparsity":
                shares = {"Sparsity (%), all": mine["all"]}
                if "attention" in mine["components"]:
                    shares["Sparsity (%), attention"] = mine["components"]["attention"]
                lines += [
                    _line(label, 100 * each["unchanged"][main], theirs, 1) for label, each in shares.items()
                ]
            elif column in mine["components"]:
                lines.append(
                    _line(paper.columns[column], mine["components"][column]["mean_delta"], theirs, 4)
                )
        forms.append(_form(found, mine["model"], row, lines))
    return forms


def threshold_beside(paper: Published, table: PublishedTable, model: str, found: Found) -> list[Form]:
    """Table 22: unchanged elements of the whole model."""
    document, forms = found.document, []
    for mine, column in _columns(table, found):
        lines = []
        for threshold, share in zip(document["thresholds"], mine["all"]["unchanged"], strict=True):
            row = table.row(model, f"{threshold:g}")
            if row is not None:
                lines.append(_line(row.label, 100 * share, (paper, table, row, column), 1))
        if lines:
            forms.append(_form(found, mine["model"], None, lines))
    return forms


def part_beside(paper: Published, table: PublishedTable, model: str, found: Found) -> list[Form]:
    """Table 23: changed elements by sub-component, those that the paper has as one weighted by elements."""
    document, forms = found.document, []
    main = document["thresholds"].index(document["main_threshold"])
    for mine, column in _columns(table, found):
        lines = []
        for row in table.of_model(model):
            parts = _parts(mine["sub_components"], row.role)
            elements = sum(part["elements"] for part in parts)
            changed = sum(part["elements"] * (1 - part["unchanged"][main]) for part in parts)
            ours = 100 * changed / elements if elements else None
            lines.append(_line(row.label, ours, (paper, table, row, column), 1))
        if lines:
            forms.append(_form(found, mine["model"], None, lines))
    return forms


def direction_beside(paper: Published, table: PublishedTable, model: str, found: Found) -> list[Form]:
    """Figure 12: the cosines of the two mixtures' updates."""
    forms = []
    for pair in found.document["pairs"]:
        names = {found.roles.get(pair[place]) for place in ("first", "second")}
        if names != {"mc", "mcs"}:
            continue
        lines = []
        for row in table.of_model(model):
            if row.role == "all":
                ours = pair["overall"]
            else:
                parts = _parts(pair["sub_components"], row.role)
                known = [part for part in parts if part["cosine"] is not None]
                elements = sum(part["elements"] for part in known)
                ours = (
                    sum(part["elements"] * part["cosine"] for part in known) / elements if elements else None
                )
            lines.append(_line(row.label, ours, (paper, table, row, "cosine"), 3))
        forms.append(_form(found, f"{pair['first']}, {pair['second']}", None, lines))
    return forms


def cka_beside(paper: Published, table: PublishedTable, model: str, found: Found) -> list[Form]:
    """Table 14: the lowest CKA over layers, for sets of texts that have the names of the paper's."""
    forms: dict[str, tuple[PublishedRow, list[Line]]] = {}
    for pair in found.document["pairs"]:
        # CKA is symmetric, and the models may be in any order.
        names = [found.roles.get(pair[place], "") for place in ("first", "second")]
        either = [table.row(model, f"{one}→{_any_mix(other)}") for one, other in (names, names[::-1])]
        row = either[0] or either[1]
        column = pair["inputs"].lower()
        if row is not None and column in table.columns and pair["minimum"] is not None:
            line = _line(paper.columns[column], pair["minimum"]["cka"], (paper, table, row, column), 4)
            forms.setdefault(f"{pair['first']}, {pair['second']}", (row, []))[1].append(line)
    return [_form(found, models, row, lines) for models, (row, lines) in forms.items()]


def confidence_beside(paper: Published, table: PublishedTable, model: str, found: Found) -> list[Form]:
    """Table 15, on MATH500 only."""
    forms = []
    for mine in found.document["models"]:
        row = table.row(model, _any_mix(found.roles.get(mine["model"], "")))
        if row is None or MATH500 not in mine["suites"]:
            continue
        measured = mine["suites"][MATH500]
        means = [measured["nlp"][kind]["of_responses"] for kind in ("all", "correct", "incorrect")]
        values = [
            100 * measured["pass_rate"]["value"],
            measured["tokens"]["median"],
            *(None if mean is None else mean["value"] for mean in means),
        ]
        lines = [
            _line(paper.columns[column], value, (paper, table, row, column), digits)
            for column, value, digits in zip(ANSWERS, values, (1, 0, 3, 3, 3), strict=True)
        ]
        forms.append(_form(found, mine["model"], row, lines))
    return forms


def _transitions(
    table: PublishedTable, model: str, found: Found
) -> list[tuple[Mapping[str, Any], PublishedRow]]:
    """Our models with the published row of the same transition; the paper does not say which RL mix it has."""
    base = found.roles.get(found.document["base"]["model"])
    pairs = []
    for mine in found.document["models"]:
        row = table.row(model, f"{base}→{_any_mix(found.roles.get(mine['model'], ''))}")
        if row is not None:
            pairs.append((mine, row))
    return pairs


def _any_mix(role: str) -> str:
    return re.sub(r">rl-mcs?$", ">rl", role)


def _columns(table: PublishedTable, found: Found) -> list[tuple[Mapping[str, Any], str]]:
    """Our models with the published column of the same transition, with the mixture mcs."""
    base = found.roles.get(found.document["base"]["model"], "")
    pairs = []
    for mine in found.document["models"]:
        role = found.roles.get(mine["model"], "")
        column = ""
        if (base, role) == (BASE, "mcs"):
            column = "base_midtrain"
        elif re.fullmatch(r"mcs>rl-mcs?", role) and base == "mcs":
            column = "midtrain_rl"
        elif re.fullmatch(r"base>rl-mcs?", role) and base == BASE:
            column = "base_rl"
        if column in table.columns:
            pairs.append((mine, column))
    return pairs


def _parts(sub_components: Mapping[str, Mapping[str, Any]], role: str) -> list[Mapping[str, Any]]:
    starts = PARTS.get(role, (role,))
    return [
        found
        for name, found in sub_components.items()
        if any(
            name == start or name.startswith(start if start[-1] == "." else f"{start}.") for start in starts
        )
    ]


def _line(
    label: str,
    ours: float | None,
    theirs: tuple[Published, PublishedTable, PublishedRow, str],
    digits: int,
) -> Line:
    _, _, row, column = theirs
    number = row.number(column)
    apart = DASH if ours is None or number is None else difference(ours, number, digits)
    ratio = f"× {ours / number:.2g}" if ours and number and number < SMALL else ""
    mine = DASH if ours is None else f"{ours:,.{digits}f}"
    cells = [Cell(mine), published_cell(*theirs), Cell(apart, ratio, kind="difference")]
    return Line("ours", Cell(label), cells)


def _form(found: Found, ours: str, row: PublishedRow | None, lines: Sequence[Line]) -> Form:
    columns = [
        Cell("measure"),
        Cell(ours),
        Cell("paper", row.label if row else "", kind="paper"),
        Cell("difference", kind="difference"),
    ]
    return Form(f"{found.name}: ours beside the published value.", columns, list(lines))
