"""The scores of a run's models under the paper's names: benchmarks, leaderboards, RULER by length, and the averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_prism.errors import ArtifactError
from megatron_prism.evaluation.statistics.averages import DOMAINS, weighted_mean
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.report.tables import EVALUATION_KIND

RULER_KIND, HARNESS_KIND = "ruler", "harness"
LEADERBOARDS = {"leaderboard-v1": "leaderboard_v1", "leaderboard-v2": "leaderboard_v2"}
AVERAGES = {"code": "code_avg", "math": "math_avg"}
AVG = "avg"


@dataclass(frozen=True)
class Score:
    """A score in 0..1 with its interval; `problems` and `samples` are None for an average."""

    value: float
    low: float
    high: float
    problems: int | None = None
    samples: int | None = None


Scores = dict[str, Score]


def our_scores(artifacts: Mapping[str, Artifact]) -> dict[str, Scores]:
    """Stage that made the model -> key -> score, in the order of evaluation. What is scored twice counts once, first.

    Raises:
        ArtifactError: if a receipt lacks a value.
    """
    makers = {artifact.fingerprint: name for name, artifact in artifacts.items()}
    found: dict[str, Scores] = {}
    for name, artifact in artifacts.items():
        if artifact.kind not in (EVALUATION_KIND, RULER_KIND, HARNESS_KIND):
            continue
        model = found.setdefault(makers.get(artifact.receipt.inputs.get("model", ""), name), {})
        try:
            for key, score in _entries(artifact):
                model.setdefault(key, score)
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise ArtifactError(
                f"{artifact.path}: the receipt's metrics are not scores ({problem!r}); evaluate again"
            ) from None
    for scores in found.values():
        scores |= averages(scores)
    return found


def domain_of(key: str) -> str:
    """'code', 'math' or 'science' for a benchmark of the paper or a suite of that name; '' for others."""
    for domain, benchmarks in DOMAINS.items():
        if key in benchmarks or key == domain:
            return domain
    return ""


def averages(scores: Mapping[str, Score]) -> Scores:
    """The paper's averages: over its benchmarks if a model has all of them, or else over its suites of each domain."""
    parts: dict[str, list[str]] = {}
    for domain, benchmarks in DOMAINS.items():
        if all(name in scores for name in benchmarks):
            parts[domain] = list(benchmarks)
        elif domain in scores:
            parts[domain] = [domain]
    made = {AVERAGES[domain]: _mean(scores, parts[domain]) for domain in AVERAGES if domain in parts}
    own = {names == [domain] for domain, names in parts.items()}
    if len(parts) == len(DOMAINS) and len(own) == 1:
        share = 1 / len(DOMAINS)
        weights = [(share / len(names), name) for names in parts.values() for name in names]
        made[AVG] = _weighted(scores, weights)
    return made


def _mean(scores: Mapping[str, Score], names: Sequence[str]) -> Score:
    return _weighted(scores, [(1 / len(names), name) for name in names])


def _weighted(scores: Mapping[str, Score], weights: Sequence[tuple[float, str]]) -> Score:
    parts = [(weight, scores[name].value, scores[name].low, scores[name].high) for weight, name in weights]
    value, low, high = weighted_mean(parts)
    return Score(value, max(0.0, low), min(1.0, high))


def _entries(artifact: Artifact) -> Iterator[tuple[str, Score]]:
    metrics: Mapping[str, Any] = artifact.metrics
    if artifact.kind == HARNESS_KIND:
        for suite, average in metrics.get("averages", {}).items():
            yield LEADERBOARDS.get(suite, suite), _score(average, "score")
            for name, benchmark in average["benchmarks"].items():
                yield name, _score(benchmark, "score")
        return
    for suite, values in metrics.get("suites", {}).items():
        yield (
            suite,
            _score(values, "pass_rate", problems=int(values["problems"]), samples=int(values["samples"])),
        )


def _score(values: Mapping[str, Any], key: str, **counts: int) -> Score:
    return Score(float(values[key]), float(values["low"]), float(values["high"]), **counts)
