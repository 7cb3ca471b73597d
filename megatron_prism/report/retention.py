"""What every later model of a run kept of the base model: mean changes by group of suites, with verdicts.

The first scored model is the base. These are the numbers of `prism eval compare RUN:BASE RUN:MODEL...` with its default
margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.comparison import (
    MARGIN,
    MOST_SUITES_SHOWN,
    Comparison,
    GroupChange,
    compare,
    group_changes,
)
from megatron_prism.evaluation.plan import DOMAIN, GENERAL, LONG
from megatron_prism.evaluation.scored_model import SCORING, ScoredModel
from megatron_prism.evaluation.scores import PROBLEMS, read_problems
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.report.tables import DASH, Table, signed

CONFIDENCE = 0.95
HEADINGS = {DOMAIN: "domain", GENERAL: "general", LONG: "long contexts"}


@dataclass(frozen=True)
class Retention:
    """The comparisons of a run; empty if no two models share suites.

    Attributes:
        margin: the loss, in 0..1, that counts as none.
    """

    base: str
    margin: float
    confidence: float
    suites: list[Comparison]
    groups: list[GroupChange]


def scored_models(artifacts: Mapping[str, Artifact]) -> dict[str, ScoredModel]:
    """Every model of a run with scores, named by the stage that made it, in the order of their first scores.

    If a suite is scored twice for a model, the first counts.
    """
    makers = {artifact.fingerprint: name for name, artifact in artifacts.items()}
    folders: dict[str, list[Artifact]] = {}
    for name, artifact in artifacts.items():
        if artifact.kind in SCORING and (artifact.path / PROBLEMS).is_file():
            model = makers.get(artifact.receipt.inputs.get("model", ""), name)
            folders.setdefault(model, []).append(artifact)
    return {model: _first_scores(found) for model, found in folders.items()}


def _first_scores(artifacts: list[Artifact]) -> ScoredModel:
    seen: set[str] = set()
    chosen = []
    for artifact in artifacts:
        suites = set(read_problems(artifact.path))
        if not suites & seen:
            seen |= suites
            chosen.append(artifact.path)
    return ScoredModel.read(*chosen)


def retention(artifacts: Mapping[str, Artifact]) -> Retention:
    """Every later model against the first; models that cannot be compared with it are left out.

    Raises:
        ArtifactError: if a file of an artifact does not have the expected contents.
    """
    models = scored_models(artifacts)
    if not models:
        return Retention("", MARGIN, CONFIDENCE, [], [])
    base, *others = models
    comparable = {base: models[base]} | {
        name: models[name] for name in others if _comparable(models[base], models[name])
    }
    made = compare(comparable, MARGIN, CONFIDENCE)
    return Retention(base, MARGIN, CONFIDENCE, made, group_changes(made, MARGIN))


def _comparable(base: ScoredModel, other: ScoredModel) -> bool:
    try:
        return bool(compare({"base": base, "other": other}))
    except ArtifactError:
        return False


def retention_table(found: Retention) -> Table:
    """A row per model, a column per group: the mean change in points, its interval and the verdict."""
    changes = {(each.model, each.group): each for each in found.groups}
    groups = [group for group in HEADINGS if any(each.group == group for each in found.groups)]
    rows = []
    for model in dict.fromkeys(each.model for each in found.groups):
        cells = []
        for group in groups:
            change = changes.get((model, group))
            suites = "" if change is None else f"{change.suites} suite{'s' if change.suites > 1 else ''}"
            cells.append(DASH if change is None else f"{_points(change)}, {suites}: {change.verdict}")
        rows.append([model, *cells])
    return Table(["model", *(HEADINGS[group] for group in groups)], rows, [False, *[True] * len(groups)])


def suites_table(found: Retention) -> Table:
    """A row per model and suite: scores in percent, change in points, corrected p-value, verdict."""
    crowded = {(each.model, each.group) for each in found.groups if each.suites > MOST_SUITES_SHOWN}
    rows = [
        [
            each.model,
            each.suite,
            f"{100 * each.before:.1f}",
            f"{100 * each.after:.1f}",
            f"{signed(each.test.change)} ({signed(each.test.low)} to {signed(each.test.high)})",
            f"{each.corrected:.3f}" if each.corrected >= 0.001 else "< 0.001",
            f"{100 * each.test.detectable:.1f}",
            each.verdict,
        ]
        for each in found.suites
        if (each.model, each.group) not in crowded
    ]
    columns = ["model", "suite", "before", "after", "change", "p (Holm)", "detectable", "verdict"]
    return Table(columns, rows, [False, False, True, True, True, True, True, False])


def _points(change: GroupChange) -> str:
    return f"{signed(change.change)} ({signed(change.low)} to {signed(change.high)})"
