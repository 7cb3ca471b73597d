"""The page paper.html: the paper's Tables 3 to 9, 11 to 15, 22, 23 and Figures 10 to 16 in form, from one run.

Like the report it needs no network and no scripts, and everything from models, configs and data files is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.report.paper.analyses import Found, stage_analyses
from megatron_prism.report.paper.analysis_forms import AnalysisRun, analysis_section
from megatron_prism.report.paper.form import Plot, Section
from megatron_prism.report.paper.our_scores import our_scores
from megatron_prism.report.paper.published import Contradiction, Published, published
from megatron_prism.report.paper.roles import published_name, roles
from megatron_prism.report.paper.score_forms import FULL, ROWS, ScoreRun, score_section
from megatron_prism.report.records import Run
from megatron_prism.report.reinforcement import frontier_figure
from megatron_prism.report.tables import EVALUATION_KIND, provenance
from megatron_prism.report.template import template

TEMPLATE = "paper/paper.html"
RUN_DIR = "RUN_DIR"
# In the paper's order.
KEYS = (
    *("table3", "table4", "table5", "table6", "table7", "table8", "table9", "figure10", "table11"),
    *("figure11", "table12", "table13", "figure12", "figure13", "table14", "figure14", "table15", "figure15"),
    *("figure16", "table22", "table23", "spectrum"),
)
FIGURE_10, SPECTRUM = "figure10", "spectrum"
NOTES = {
    "table3": "The paper's checkpoints of Phases 3 and 4 are not public. A run has one starting model.",
    "table7": "The paper restored the model of Math+Code: with `mixture=mc`, the rows are comparable.",
    "table8": "A run has one length of mid-training; another is `midtrain.batch.sequence_length=16384`.",
    "table9": "A run has one budget of mid-training; another is `midtrain.steps=10000`.",
    "table11": "Ours are of the last step; the paper's are of the best step of each row (`prism eval select`).",
    "table12": "The paper's Total and Sparsity have two readings; ours stand under their own names.",
}


@dataclass(frozen=True)
class Listed:
    """A contradiction with its number, and (key of the section, number of the table) of what it concerns."""

    number: int
    each: Contradiction
    concerns: list[tuple[str, str]]


def render_paper(run: Run, title: str, run_dir: str = RUN_DIR, analyses: Sequence[Found] = ()) -> str:
    """The page as one string of HTML.

    Args:
        run_dir: how commands on the page name the run's folder.
        analyses: further ones than those of the run's stages.

    Raises:
        ArtifactError: if a file of an artifact does not have the expected contents.
    """
    paper = published()
    model = published_name(run, paper)
    sections = paper_sections(run, paper, run_dir, [*stage_analyses(run), *analyses])
    page: str = template(TEMPLATE).render(
        title=title,
        recipe=run.recipe,
        model=paper.models[model] if model else "",
        models=list(paper.models.values()),
        sections=sections,
        filled=sum(section.filled for section in sections),
        contradictions=_listed(paper, sections),
        provenance=provenance(run.artifacts),
        analyses=[(each.name, each.verb) for each in (*stage_analyses(run), *analyses)],
        run_dir=run_dir,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def paper_sections(run: Run, paper: Published, run_dir: str, analyses: Sequence[Found]) -> list[Section]:
    """Every table and figure in order; those without data in this run say what would make them."""
    model, known = published_name(run, paper), roles(run)
    scored = ScoreRun(
        recipe=run.recipe,
        model=model,
        scores=our_scores(run.artifacts),
        roles=known,
        run_dir=run_dir,
        details=_details(run),
    )
    analysed = AnalysisRun(
        recipe=run.recipe,
        model=model,
        found=analyses,
        roles=known,
        evaluations=[stage.name for stage in run.stages if stage.kind == EVALUATION_KIND],
        run_dir=run_dir,
    )
    sections = []
    for key in KEYS:
        of_scores = key in ROWS
        section = score_section(paper, key, scored) if of_scores else analysis_section(paper, key, analysed)
        if key == FIGURE_10:
            _solvability(section, run, run_dir)
        if key in NOTES:
            section.notes.append(NOTES[key])
        if key != SPECTRUM or section.filled:
            sections.append(section)
    return sections


def _solvability(section: Section, run: Run, run_dir: str) -> None:
    figure = frontier_figure(run.artifacts)
    if figure:
        caption = "Pass rate by RL step of prompts grouped by how many answers were right at the start."
        section.plots.append(Plot(figure, caption))
    else:
        section.missing.append(f"prism run {run.recipe or 'RECIPE'} rl=true")


def _details(run: Run) -> dict[str, str]:
    """Length and tokens of every training stage."""
    found = {}
    for name, artifact in run.artifacts.items():
        words = _training(artifact)
        if artifact.kind == "train" and words:
            found[name] = words
    return found


def _training(artifact: Artifact) -> str:
    batch = artifact.receipt.config.get("batch") or {}
    length, tokens = batch.get("sequence_length"), artifact.metrics.get("tokens")
    words = [f"length {length:,}"] if isinstance(length, int) else []
    if isinstance(tokens, int | float):
        words.append(f"{tokens / 1e9:.2f} B tokens" if tokens >= 1e9 else f"{tokens / 1e6:.2f} M tokens")
    return ", ".join(words)


def _listed(paper: Published, sections: Sequence[Section]) -> list[Listed]:
    shown = {section.key: section.key for section in sections} | {part: key for key, part in FULL.items()}
    numbers = {key: each.number for key, each in paper.figures.items()}
    numbers |= {key: each.number for key, each in paper.tables.items()}
    return [
        Listed(
            number,
            each,
            [(shown[key], numbers[key]) for key in dict.fromkeys(cell["table"] for cell in each.cells)],
        )
        for number, each in enumerate(paper.contradictions, start=1)
    ]
