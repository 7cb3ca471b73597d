"""The paper's tables of scores (3 to 9, 11) with a run's models as rows, and ours beside theirs by benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_prism.report.paper.form import (
    DASH,
    Cell,
    Form,
    Line,
    Section,
    difference,
    published_cell,
    published_lines,
    reference_form,
    section_of,
)
from megatron_prism.report.paper.our_scores import AVERAGES, AVG, Score, Scores, domain_of
from megatron_prism.report.paper.published import Published, PublishedRow, PublishedTable
from megatron_prism.report.paper.roles import BASE, midtrained, words

AVERAGE_KEYS = (*AVERAGES.values(), AVG)
DOMAIN_HEADINGS = {"code": "Code", "science": "Science", "math": "Math"}
# Tables about the length and the tokens of mid-training.
DETAILED = ("table3", "table8", "table9")
# Ours beside theirs: so many models in one table, with three columns each.
MODELS_BESIDE = 3
RULER = "ruler-"
BESIDE = "Ours beside the published value; differences in points. Outside: the published value is not in our interval."


@dataclass(frozen=True)
class ScoreRun:
    """What the tables need of a run.

    Attributes:
        recipe: its name.
        model: the same, if the run is about a model of the paper.
        scores: stage -> key -> score.
        roles: stage -> role.
        run_dir: how commands name the run's folder.
        details: stage -> further words for a row, such as the tokens of mid-training.
    """

    recipe: str
    model: str | None
    scores: dict[str, Scores]
    roles: dict[str, str]
    run_dir: str
    details: Mapping[str, str]


def _base_and_midtrained(role: str) -> bool:
    return role == BASE or midtrained(role)


# Table -> the roles that it has rows for.
ROWS: dict[str, Callable[[str], bool]] = {
    "table3": midtrained,
    "table4": _base_and_midtrained,
    "table5": _base_and_midtrained,
    "table6": _base_and_midtrained,
    "table7": lambda role: ">rl-" not in role,
    "table8": _base_and_midtrained,
    "table9": _base_and_midtrained,
    "table11": lambda role: role == BASE or midtrained(role) or ">rl-" in role,
}
# Tables of the appendix, or of the project page, that belong to another one.
FULL = {"table5": "table19", "table9": "table20", "table11": "page"}


def score_section(paper: Published, key: str, run: ScoreRun) -> Section:
    """One table of scores."""
    table = paper.tables[key]
    section = section_of(table)
    section.marks = paper.marks(table=key)
    stages = [stage for stage, role in run.roles.items() if stage in run.scores and ROWS[key](role)]
    columns = _columns(table, [run.scores[stage] for stage in stages])
    stages = [stage for stage in stages if any(column in run.scores[stage] for column in columns)]
    theirs = table.of_model(run.model) if run.model else []
    if columns and stages:
        lines = [_our_line(run, stage, columns, key in DETAILED) for stage in stages]
        if theirs and set(columns) <= set(table.columns):
            subset = [
                Line(line.kind, line.label, [line.cells[table.columns.index(column)] for column in columns])
                for line in published_lines(paper, table, theirs)
            ]
            lines += subset
        headings = [Cell("model"), *(_heading(paper, run, column, stages) for column in columns)]
        section.forms.append(Form(_caption(columns, table), headings, lines))
        section.forms += _beside(paper, table, run, stages)
    else:
        section.missing.append(_command(paper, key, run))
    others = [row for row in table.rows if row not in theirs or not section.forms]
    if others:
        section.reference.append(reference_form(paper, table, others))
    if key in FULL:
        full = paper.tables[FULL[key]]
        section.reference.append(reference_form(paper, full, full.rows))
    return section


def _columns(table: PublishedTable, scores: Sequence[Scores]) -> list[str]:
    """The paper's columns that the run has, or the run's own suites and lengths in their place."""
    present = list(dict.fromkeys(key for each in scores for key in each))
    shared = [key for key in table.columns if key in present and key not in AVERAGE_KEYS]
    if shared:
        return [key for key in table.columns if key in present]
    own = []
    if any(key.startswith(RULER) for key in table.columns):
        own = sorted(
            (key for key in present if key.startswith(RULER)), key=lambda key: int(key[len(RULER) :])
        )
        if not own:
            return []
    for domain in DOMAIN_HEADINGS:
        if any(domain_of(key) == domain or key == AVERAGES.get(domain) for key in table.columns):
            own += [key for key in present if domain_of(key) == domain]
    return own + ([AVG] if AVG in table.columns and AVG in present else [])


def _our_line(run: ScoreRun, stage: str, columns: Sequence[str], detailed: bool) -> Line:
    more = words(run.roles[stage])
    if detailed and stage in run.details:
        more += f", {run.details[stage]}"
    cells = [_score_cell(run.scores[stage].get(column)) for column in columns]
    return Line("ours", Cell(stage, more), cells)


def _score_cell(score: Score | None) -> Cell:
    if score is None:
        return Cell(DASH)
    return Cell(f"{100 * score.value:.2f}", f"{100 * score.low:.1f}–{100 * score.high:.1f}")


def _heading(paper: Published, run: ScoreRun, column: str, stages: Sequence[str]) -> Cell:
    scores = [run.scores[stage][column] for stage in stages if column in run.scores[stage]]
    counts = list(dict.fromkeys((score.problems, score.samples) for score in scores))
    more = ""
    if len(counts) == 1 and counts[0][0] is not None:
        problems, samples = counts[0]
        each = (samples or 0) // problems if problems else 0
        more = f"{problems:,}×{each}" if each > 1 else f"{problems:,}"
    if column.startswith(RULER) and column not in paper.columns:
        return Cell(f"{int(column[len(RULER) :]):,}", more)
    return Cell(paper.columns.get(column, column), more)


def _caption(columns: Sequence[str], table: PublishedTable) -> str:
    said = "This run, in percent with intervals; below a heading, problems × samples."
    own = [column for column in columns if column not in table.columns]
    if own:
        said += f" The run's own {', '.join(own)} stand in for the paper's."
    return said


def _beside(paper: Published, table: PublishedTable, run: ScoreRun, stages: Sequence[str]) -> list[Form]:
    """A row for each benchmark; ours, the paper's value and the difference for each model that the paper has."""
    pairs = []
    for stage in stages:
        row = table.row(run.model or "", run.roles[stage])
        if row is not None and any(column in run.scores[stage] for column in table.columns):
            pairs.append((stage, row))
    return [
        _beside_form(paper, table, run, pairs[first : first + MODELS_BESIDE])
        for first in range(0, len(pairs), MODELS_BESIDE)
    ]


def _beside_form(
    paper: Published, table: PublishedTable, run: ScoreRun, pairs: Sequence[tuple[str, PublishedRow]]
) -> Form:
    lines = []
    for column in table.columns:
        cells = []
        for stage, row in pairs:
            ours, theirs = run.scores[stage].get(column), row.number(column)
            cells += [_score_cell(ours), published_cell(paper, table, row, column)]
            if ours is None or theirs is None:
                cells.append(Cell(DASH, kind="difference"))
            else:
                outside = not 100 * ours.low <= theirs <= 100 * ours.high
                more = "outside" if outside else ""
                cells.append(Cell(difference(100 * ours.value, theirs, 2), more, kind="difference"))
        if any(cell.text != DASH for cell in cells[::3]):
            lines.append(Line("ours", Cell(paper.columns[column]), cells))
    headings = [Cell("benchmark")]
    for stage, row in pairs:
        headings += [
            Cell(stage),
            Cell("paper", row.label, kind="paper"),
            Cell("difference", kind="difference"),
        ]
    return Form(BESIDE, headings, lines)


def _command(paper: Published, key: str, run: ScoreRun) -> str:
    if run.recipe in paper.models:
        phases = {
            "table4": "evaluate=true suites=reasoning,general",
            "table7": "long_context=true evaluate=true",
            "table11": "rl=true evaluate=true",
        }
        return f"prism run {run.recipe} {phases.get(key, 'evaluate=true')}"
    model = next((stage for stage, role in run.roles.items() if midtrained(role)), None)
    suite = {"table4": "general", "table7": "long"}.get(key, "reasoning")
    return f"prism eval {f'{run.run_dir}/{model}' if model else 'MODEL'} --suite {suite}"
