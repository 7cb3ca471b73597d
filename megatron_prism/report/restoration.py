"""The paper's Table 7 from receipts: retrieval by length, and scores on the domains, for every model of a run.

The first evaluated model (the base model) has the ability to be restored, and the second (the mid-trained model) lost
it. Recovery is measured between these two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.ruler.recovery import read_recalls, recovered
from megatron_prism.evaluation.ruler.scoring import Interval
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.report.tables import DASH, Table, score_rows

RULER_KIND = "ruler"


@dataclass(frozen=True)
class LengthScore:
    """Mean recall over the tasks at one length, in 0..1."""

    length: int
    score: Interval
    samples: int


@dataclass(frozen=True)
class RulerScores:
    """A model's retrieval by length; `model` is the stage that made the model, `stage` the one that evaluated it."""

    model: str
    stage: str
    lengths: list[LengthScore]


def ruler_scores(artifacts: Mapping[str, Artifact]) -> list[RulerScores]:
    """Every ruler artifact's scores, in order.

    Raises:
        ArtifactError: if a receipt lacks a value.
    """
    makers = {artifact.fingerprint: name for name, artifact in artifacts.items()}
    found = []
    for name, artifact in artifacts.items():
        if artifact.kind != RULER_KIND:
            continue
        try:
            lengths = [
                LengthScore(
                    int(length),
                    Interval(
                        float(entry["recall"]),
                        float(entry["low"]),
                        float(entry["high"]),
                        str(entry["interval"]),
                    ),
                    int(entry["samples"]),
                )
                for length, entry in artifact.metrics["lengths"].items()
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise ArtifactError(
                f"{artifact.path}: the receipt's metrics are not RULER scores ({problem!r}); evaluate again"
            ) from None
        found.append(RulerScores(makers.get(artifact.receipt.inputs.get("model", ""), name), name, lengths))
    return found


def restoration_table(artifacts: Mapping[str, Artifact]) -> Table:
    """A row per model; columns for lengths and domain suites; in percent, with intervals."""
    scores = ruler_scores(artifacts)
    lengths = sorted({each.length for row in scores for each in row.lengths})
    domains = {(row.model, row.suite): row.estimate for row in score_rows(artifacts)}
    suites = list(dict.fromkeys(suite for _, suite in domains))
    body = []
    for row in scores:
        by_length = {each.length: each.score for each in row.lengths}
        cells = [row.model]
        cells += [_percent(by_length.get(length)) for length in lengths]
        for suite in suites:
            estimate = domains.get((row.model, suite))
            cells.append(DASH if estimate is None else f"{100 * estimate.rate:.1f}")
        body.append(cells)
    columns = ["model", *(f"{length:,}" for length in lengths), *suites]
    return Table(columns, body, [False] + [True] * (len(columns) - 1))


def recoveries(artifacts: Mapping[str, Artifact]) -> dict[str, dict[int, Interval | None]]:
    """Model -> length -> the share of the second model's loss of recall that this model has recovered.

    Raises:
        ArtifactError: if the models were not evaluated on the same samples.
    """
    scores = ruler_scores(artifacts)
    if len(scores) < 3:
        return {}
    recalls = [read_recalls(artifacts[row.stage].path) for row in scores]
    return {
        row.model: {
            length: recovered(recalls[0][length], recalls[1][length], mine[length])
            for length in sorted(set(recalls[0]) & set(recalls[1]) & set(mine))
        }
        for row, mine in zip(scores[2:], recalls[2:], strict=True)
    }


def recovery_table(artifacts: Mapping[str, Artifact]) -> Table:
    """`recoveries` in percent; a dash where the loss is not significant."""
    found = recoveries(artifacts)
    lengths = sorted({length for row in found.values() for length in row})
    body = [[model, *(_percent(row.get(length)) for length in lengths)] for model, row in found.items()]
    return Table(["model", *(f"{length:,}" for length in lengths)], body, [False] + [True] * len(lengths))


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return DASH
    return f"{100 * interval.mean:.1f}\n{100 * interval.low:.1f}–{100 * interval.high:.1f}"
