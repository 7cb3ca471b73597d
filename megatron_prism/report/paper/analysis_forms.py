"""The paper's tables and figures of weights, representations and answers, from the documents of `prism analyze`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_prism.analysis.figures import FULL_WIDTH, inline_svg
from megatron_prism.analysis.views.weights import component_table
from megatron_prism.platform.text_table import Table
from megatron_prism.report.paper.analyses import Found
from megatron_prism.report.paper.beside import (
    cka_beside,
    confidence_beside,
    direction_beside,
    part_beside,
    threshold_beside,
    weights_beside,
)
from megatron_prism.report.paper.form import DASH, Plot, Section, narrow, reference_form, section_of
from megatron_prism.report.paper.published import Published
from megatron_prism.report.paper.roles import BASE, midtrained

# Verb -> where the tables of its view go, in order (the last also takes what follows), and where each drawing goes.
TABLES = {
    "weights": ("table12", "table22", "table23", "table12"),
    "direction": ("figure12",),
    "cka": ("table14",),
    "confidence": ("table15",),
    "landscape": ("figure13",),
    "trajectory": ("figure16",),
    "spectrum": ("spectrum",),
}
DRAWINGS = {
    "weights": {"sparsity_by_threshold": "table22", "changed_by_sub_component": "table23", "": "figure11"},
    "direction": {"": "figure12"},
    "cka": {"": "figure14"},
    "confidence": {"": "figure15"},
    "landscape": {"": "figure13"},
    "trajectory": {"": "figure16"},
    "spectrum": {"": "spectrum"},
}
VERB_OF = {
    "figure11": "weights",
    "table12": "weights",
    "table13": "weights",
    "table22": "weights",
    "table23": "weights",
    "figure12": "direction",
    "figure13": "landscape",
    "table14": "cka",
    "figure14": "cka",
    "table15": "confidence",
    "figure15": "confidence",
    "figure16": "trajectory",
}

RL = ">rl-"
SPARSITY = "update sparsity by component: elements (%) that changed by less than 1 %"


@dataclass(frozen=True)
class AnalysisRun:
    """What these sections need of a run; see `ScoreRun`.

    Attributes:
        evaluations: stages that scored models.
    """

    recipe: str
    model: str | None
    found: Sequence[Found]
    roles: Mapping[str, str]
    evaluations: Sequence[str]
    run_dir: str


def analysis_section(paper: Published, key: str, run: AnalysisRun) -> Section:
    """One table or figure."""
    section = _empty(paper, key)
    section.marks = paper.marks(table=key)
    for each in run.found:
        several = sum(other.verb == each.verb for other in run.found) > 1
        _place(section, each, f"{each.name}: " if several else "")
        _compare(section, paper, key, run=run, found=each)
    if key in VERB_OF and not section.filled:
        if run.recipe in paper.models and key not in ("table13", "figure12", "figure13"):
            section.missing.append(f"prism run {run.recipe} rl=true evaluate=true analyze=true")
        else:
            section.missing += _commands(key, run)
    return section


def _empty(paper: Published, key: str) -> Section:
    if key in paper.tables:
        table = paper.tables[key]
        section = section_of(table)
        section.reference.append(reference_form(paper, table, table.rows))
        if key in paper.figures:
            section.published = paper.figures[key].published
        return section
    if key in paper.figures:
        figure = paper.figures[key]
        return Section(key, figure.number, figure.section, figure.title, published=figure.published)
    return Section(key, "", "", "Spectra of the updates, which the paper does not have")


def _place(section: Section, found: Found, prefix: str) -> None:
    """Put the tables and drawings of one analysis that belong here into the section."""
    view, places = found.view, TABLES[found.verb]
    if section.key == "figure11" and found.verb == "weights":
        section.tables.append((f"{prefix}{SPARSITY}.", sparsity_table(found.document)))
    if section.key == "table13":
        if found.verb == "weights" and (models := _mixtures(found)):
            document = found.document
            main = document["thresholds"].index(document["main_threshold"])
            table = component_table(models, document["base"]["model"], main)
            section.tables.append((f"{prefix}{table.title}.", table))
        return
    placed = [
        (f"{prefix}{table.title}.", narrow(table))
        for number, table in enumerate(view.tables)
        if places[min(number, len(places) - 1)] == section.key
    ]
    section.tables += placed[:1]
    section.more_tables += placed[1:]
    drawings = DRAWINGS[found.verb]
    for name, drawing in view.drawings.items():
        if drawings.get(name, drawings[""]) == section.key:
            svg = inline_svg(drawing, f"{found.name}-{name}")
            caption = f"{prefix}{drawing.caption or name.replace('_', ' ')}"
            section.plots.append(Plot(svg, caption, min(100, round(100 * drawing.width / FULL_WIDTH))))


def sparsity_table(document: Mapping[str, Any]) -> Table:
    """The lower half of Figure 11: update sparsity by component, in percent."""
    models, base = document["models"], document["base"]["model"]
    main = document["thresholds"].index(document["main_threshold"])
    components = list(dict.fromkeys(name for model in models for name in model["components"]))
    rows = [
        [
            f"{base} → {model['model']}",
            *(
                f"{100 * model['components'][name]['unchanged'][main]:.1f}"
                if name in model["components"]
                else DASH
                for name in components
            ),
        ]
        for model in models
    ]
    return Table(["transition", *components], rows, [False, *[True] * len(components)])


def _mixtures(found: Found) -> list[Mapping[str, Any]]:
    """Two or more models that were mid-trained from the base of the analysis."""
    document = found.document
    models = [each for each in document["models"] if midtrained(found.roles.get(each["model"], BASE))]
    return models if len(models) > 1 and found.roles.get(document["base"]["model"]) == BASE else []


def _compare(section: Section, paper: Published, key: str, *, run: AnalysisRun, found: Found) -> None:
    """Ours beside the published values, if the run is about a model of the paper."""
    if run.model is None:
        return
    if found.verb == "weights" and key in ("table12", "table13"):
        section.forms += weights_beside(paper, paper.tables[key], run.model, found)
    elif found.verb == "weights" and key == "table22":
        section.forms += threshold_beside(paper, paper.tables[key], run.model, found)
    elif found.verb == "weights" and key == "table23":
        section.forms += part_beside(paper, paper.tables[key], run.model, found)
    elif found.verb == "direction" and key == "figure12":
        section.forms += direction_beside(paper, paper.tables[key], run.model, found)
    elif found.verb == "cka" and key == "table14":
        section.forms += cka_beside(paper, paper.tables[key], run.model, found)
    elif found.verb == "confidence" and key == "table15":
        section.forms += confidence_beside(paper, paper.tables[key], run.model, found)


def _commands(key: str, run: AnalysisRun) -> list[str]:
    """The commands that would fill the section, with the names of this run's stages."""
    verb = VERB_OF[key]
    base = [stage for stage, role in run.roles.items() if role == BASE][:1] or ["BASE"]
    trained = [stage for stage, role in run.roles.items() if midtrained(role)] or ["MIDTRAINED"]
    rl = [stage for stage, role in run.roles.items() if RL in role and not role.startswith(BASE)] or ["RL"]
    rl_base = [stage for stage, role in run.roles.items() if RL in role and role.startswith(BASE)]
    mixtures = [*base, *(trained if len(trained) > 1 else [*trained, "OTHER_MIXTURE"])]
    path = [*base, *trained[:1], *rl[:1]]
    wanted = {
        "weights": {"weights": [*base, *trained, *rl_base], "weights_rl": [*trained[:1], *rl]},
        "direction": {"direction": mixtures},
        "cka": {"cka": path},
        "landscape": {"landscape": path},
        "trajectory": {"trajectory": [*trained[:1], *rl[:1]]},
        "confidence": {"confidence": list(run.evaluations) or ["EVALUATION"]},
    }[verb]
    if key == "table13":
        wanted = {"weights": mixtures}
    commands = []
    for folder, models in wanted.items():
        named = " ".join(name if name.isupper() else f"{run.run_dir}/{name}" for name in models)
        if verb == "landscape":
            named += " --suite reasoning --benchmark math500" if run.model else " --suite shoebox"
        commands.append(f"prism analyze {verb} {named} --out {run.run_dir}/analysis/{folder}")
    return [*commands, f"prism report {run.run_dir}"]
