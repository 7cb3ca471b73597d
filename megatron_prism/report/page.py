"""One self-contained HTML page about a run: scores, stages, losses, sample answers and provenance.

The page needs no network and no scripts. The template escapes text from models and configs; only the figures made here
are inserted as markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.report.answers import answered, by_model, outcome_sum, outcome_table
from megatron_prism.report.figures import retrieval_figure, training_figure
from megatron_prism.report.graph_figure import graph_figure
from megatron_prism.report.records import Run, read_history
from megatron_prism.report.reinforcement import RL_KIND, frontier_figure, rl_figure, rl_table
from megatron_prism.report.restoration import recovery_table, restoration_table, ruler_scores
from megatron_prism.report.retention import retention, retention_table, suites_table
from megatron_prism.report.score_figure import score_figure
from megatron_prism.report.score_table import score_tables
from megatron_prism.report.tables import (
    ScoreRow,
    differences,
    duration,
    evaluations,
    model_labels,
    provenance,
    score_rows,
    signed,
    stage_table,
    training_table,
    validation_table,
)
from megatron_prism.report.template import template

TEMPLATE = "page.html"
# The page with the forms of the paper, which lies beside this one.
PAPER = "paper.html"
# The summary has a sentence for each score that is not compared with another, up to so many.
MOST_SENTENCES = 6


def render_page(run: Run, title: str) -> str:
    """The page as one string of HTML.

    Raises:
        ArtifactError: if a file of an artifact does not have the expected contents.
    """
    from markupsafe import Markup

    artifacts = run.artifacts
    rows = score_rows(artifacts)
    answers = answered(artifacts)
    kept = retention(artifacts)
    page = template(TEMPLATE).render(
        title=title,
        paper_page=PAPER,
        recipe=run.recipe,
        summary=summary(run, rows),
        stages=run.stages,
        waiting=[stage for stage in run.stages if stage.status != "done"],
        graph=Markup(graph_figure(run.stages)),
        scores=score_tables(artifacts),
        rows=rows,
        score_figure=Markup(score_figure(rows)),
        retrieval=restoration_table(artifacts),
        retrieval_figure=Markup(retrieval_figure(ruler_scores(artifacts))),
        recovery=recovery_table(artifacts),
        retention=kept,
        retention_table=retention_table(kept),
        retention_suites=suites_table(kept),
        rl=rl_table(artifacts),
        rl_figure=Markup(rl_figure(artifacts)),
        frontier_figure=Markup(frontier_figure(artifacts)),
        training=[(name, Markup(svg)) for name, svg in _training_figures(artifacts)],
        training_table=training_table(artifacts),
        validation=validation_table(artifacts),
        outcomes=outcome_table(artifacts),
        outcome_sum=outcome_sum(artifacts),
        answered=answers,
        answer_links=by_model(answers),
        stage_table=stage_table(artifacts),
        provenance=provenance(artifacts),
        configs=[(stage, json.dumps(stage.config, indent=2, ensure_ascii=False)) for stage in run.stages],
    )
    # A sampled text may contain lone surrogates, which UTF-8 cannot encode.
    return page.encode("utf-8", "replace").decode("utf-8")


def summary(run: Run, rows: Sequence[ScoreRow]) -> list[str]:
    """The run in a few sentences: how many stages are done, and how the scores changed."""
    done = list(run.artifacts.values())
    seconds = sum(artifact.receipt.wall_seconds for artifact in done)
    what = f"of the recipe {run.recipe} " if run.recipe else ""
    count = f"{len(done)} of {len(run.stages)} stages {what}are done"
    sentences = [f"{count}, in {duration(seconds)} of work." if done else f"{count}."]
    changes = differences(rows, run.artifacts)
    for change in changes:
        before, after = change.before, change.after
        sentences.append(
            f"On {change.suite} the pass rate went "
            f"from {100 * before.estimate.rate:.1f} % ({before.model}) to "
            f"{100 * after.estimate.rate:.1f} % ({after.model}): {signed(change.change)} points, "
            f"{100 * after.estimate.confidence:g} % interval {signed(change.low)} to {signed(change.high)}, "
            f"{after.problems:,} held-out problems."
        )
    changed = {change.suite for change in changes}
    others = [row for row in rows if row.suite not in changed]
    if len(others) > MOST_SENTENCES:
        models = dict.fromkeys(row.model for row in others)
        sentences.append(f"{len(others)} scores of {len(models)} models are in the table of scores.")
    else:
        sentences += [
            f"{row.model} solves {100 * row.estimate.rate:.1f} % of {row.problems:,} "
            f"held-out {row.suite} problems "
            f"({100 * row.estimate.low:.1f} to {100 * row.estimate.high:.1f})."
            for row in others
        ]
    sentences += _published(run)
    if not rows:
        sentences.append("Nothing has been evaluated yet.")
    return sentences


def _published(run: Run) -> list[str]:
    """How the public graders of benchmarks agree with ours."""
    sentences = []
    labels = model_labels(run.artifacts)
    for name, artifact in evaluations(run.artifacts).items():
        for suite, values in artifact.metrics.get("suites", {}).items():
            other = values.get("published")
            if other and other["samples"]:
                sentences.append(
                    f"On {suite} the public grader of {', '.join(other['benchmarks'])} gives {labels[name]} "
                    f"{100 * other['pass_rate']:.1f} % and disagrees with the grades above on "
                    f"{100 * other['disagreement']:.1f} % of {other['samples']:,} answers."
                )
    return sentences


def _training_figures(artifacts: dict[str, Artifact]) -> list[tuple[str, str]]:
    histories = {
        name: history
        for name, artifact in artifacts.items()
        if artifact.kind != RL_KIND and (history := read_history(artifact)) is not None
    }
    sources = sorted({source for history in histories.values() for source in history.validation})
    figures = [(name, training_figure(name, history, sources)) for name, history in histories.items()]
    return [(name, svg) for name, svg in figures if svg]
