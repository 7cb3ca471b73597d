"""How sure a model is of its right and of its wrong answers: the paper's Table 15, from the answers that were kept.

The measure is the mean negative log-probability (NLP) of the tokens that were sampled, in nats per token. It is not the
entropy: tokens come from the tempered and cut distribution, and their probabilities from the model's own (section
10.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_prism.analysis.responses import RAW, Responses, Source, read_responses, read_source
from megatron_prism.analysis.result import Analysis
from megatron_prism.errors import ConfigError, suggest
from megatron_prism.evaluation.answers import answered_suites
from megatron_prism.evaluation.statistics.clustered import (
    ClusteredEstimate,
    clustered_auroc,
    clustered_difference,
    clustered_mean,
)
from megatron_prism.evaluation.statistics.intervals import mean_rate

# A mean over correct or incorrect answers is given if they belong to this many problems. The paper prints "-" for "too
# few" without a number: its Granite base has none for about 270 correct answers of 1600.
LEAST_PROBLEMS = 10
ALL, CORRECT, INCORRECT = "all", "correct", "incorrect"


def analyze_confidence(
    evaluations: Mapping[str, Path],
    suites: Sequence[str] = (),
    *,
    least_problems: int = LEAST_PROBLEMS,
    confidence: float = 0.95,
) -> Analysis:
    """Compare evaluations of one or several models on the suites that all of them answered.

    Args:
        evaluations: label -> folder of an evaluation artifact.
        suites: only these; empty: all.
        least_problems: with which a mean over correct or incorrect answers is given.
        confidence: coverage of the intervals.

    Raises:
        ArtifactError: for a folder without answers or without log-probabilities, naming file and suite.
        ConfigError: for a suite that an evaluation does not have, or if they have none in common.
    """
    chosen, remarks = _common_suites(evaluations, suites)
    sources = {label: read_source(folder) for label, folder in evaluations.items()}
    rows: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    problems: dict[str, dict[str, set[str]]] = {}
    for label, folder in evaluations.items():
        measured: dict[str, Any] = {}
        for suite in chosen:
            responses = read_responses(folder, suite)
            problems.setdefault(suite, {})[label] = set(responses.ids)
            measured[suite] = measure(responses, least_problems, confidence)
            measured[suite]["sampling"] = sources[label].sampling.get(suite)
            rows += _rows(label, suite, responses)
        models.append(
            {
                "model": label,
                "evaluation": str(folder),
                "engine": sources[label].engine,
                "distribution": sources[label].distribution,
                "suites": measured,
            }
        )
    remarks += _differences(sources, problems)
    values = {
        "confidence": confidence,
        "least_problems": least_problems,
        "suites": chosen,
        "models": models,
    }
    return Analysis("confidence", _summary(models), values, {"responses": rows}, remarks)


def measure(responses: Responses, least_problems: int, confidence: float = 0.95) -> dict[str, Any]:
    """The numbers of one model and suite, JSON-ready; docs/analysis.md has the formulas.

    A response that was refused counts as incorrect in the pass rate, and nowhere else.
    """
    made = ~responses.refused
    lengths = responses.tokens[made]
    given = responses.tokens > 0
    right = responses.correct[given]
    clusters, nlp = responses.clusters[given], responses.mean_nlp[given]
    kinds = {ALL: np.ones_like(right), CORRECT: right, INCORRECT: ~right}
    enough = all(_problems(clusters[mask]) >= least_problems for mask in (right, ~right))
    return {
        "problems": _problems(responses.clusters),
        "responses": len(responses.ids),
        "refused": int(responses.refused.sum()),
        "truncated": float(responses.truncated.mean()),
        "pass_rate": _pass_rate(responses, confidence),
        "tokens": {
            name: float(np.quantile(lengths, share)) if len(lengths) else None
            for name, share in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75))
        },
        "nlp": {
            kind: _means(
                nlp[mask],
                responses.tokens[given][mask],
                clusters[mask],
                least=1 if kind == ALL else least_problems,
                confidence=confidence,
            )
            for kind, mask in kinds.items()
        },
        "incorrect_minus_correct": _plain(clustered_difference(nlp, ~right, clusters, confidence=confidence))
        if enough
        else None,
        "auroc": _plain(clustered_auroc(-nlp, right, clusters, confidence=confidence)) if enough else None,
    }


def _means(
    nlp: NDArray[np.float64],
    tokens: NDArray[np.int64],
    clusters: NDArray[np.int64],
    *,
    least: int,
    confidence: float,
) -> dict[str, Any]:
    """Both means of some responses: over responses, and over all their tokens."""
    counts = {"responses": len(nlp), "problems": _problems(clusters)}
    if counts["problems"] < max(1, least):
        return counts | {"of_responses": None, "of_tokens": None}
    of_responses = clustered_mean(nlp, clusters, confidence=confidence)
    of_tokens = clustered_mean(nlp, clusters, weights=tokens, confidence=confidence)
    return counts | {"of_responses": _plain(of_responses), "of_tokens": _plain(of_tokens)}


def _pass_rate(responses: Responses, confidence: float) -> dict[str, Any]:
    """The mean over the samples of a problem, then over problems."""
    counts = np.bincount(responses.clusters)
    by_problem = np.bincount(responses.clusters, responses.correct) / counts
    estimate = mean_rate(by_problem, confidence, several=int(counts.max()) > 1)
    return {
        "value": estimate.rate,
        "low": estimate.low,
        "high": estimate.high,
        "interval": estimate.interval,
    }


def _plain(estimate: ClusteredEstimate) -> dict[str, Any]:
    return {key: value for key, value in asdict(estimate).items() if key in ("value", "low", "high")}


def _problems(clusters: NDArray[np.int64]) -> int:
    return len(np.unique(clusters))


def _common_suites(evaluations: Mapping[str, Path], asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """The suites to compare, and remarks about those that are left out."""
    held = {label: answered_suites(folder) for label, folder in evaluations.items()}
    for suite in asked:
        for label, names in held.items():
            if suite not in names:
                raise ConfigError(
                    f"{evaluations[label]}: has no answers of suite '{suite}'{suggest(suite, names)}"
                )
    every = list(dict.fromkeys(suite for names in held.values() for suite in names))
    common = [suite for suite in every if all(suite in names for names in held.values())]
    if not common:
        listed = "; ".join(f"{evaluations[label]} has {', '.join(names)}" for label, names in held.items())
        raise ConfigError(f"no suite was answered by all models: {listed}")
    if asked:
        return list(dict.fromkeys(asked)), []
    remarks = []
    for suite in every:
        lacking = [label for label, names in held.items() if suite not in names]
        if lacking:
            remarks.append(f"suite '{suite}' is left out, because {', '.join(lacking)} did not answer it")
    return common, remarks


def _differences(sources: Mapping[str, Source], problems: Mapping[str, Mapping[str, set[str]]]) -> list[str]:
    """Remarks about what makes models less comparable: other problems, other sampling, an unknown distribution."""
    remarks = []
    first = next(iter(sources))
    for suite, by_model in problems.items():
        for label, ids in by_model.items():
            if ids != by_model[first]:
                remarks.append(
                    f"suite '{suite}': {label} answered other problems than {first} ({len(ids & by_model[first])} are "
                    "the same); differences between them are also differences of the problems"
                )
            mine, base = (_without_seed(sources[name].sampling.get(suite)) for name in (label, first))
            if mine != base:
                remarks.append(
                    f"suite '{suite}': {label} was sampled with {mine}, {first} with {base}; lengths and "
                    "log-probabilities depend on it"
                )
    for label, source in sources.items():
        if source.distribution != RAW:
            remarks.append(f"{label}: log-probabilities are {source.distribution}")
    return remarks


def _without_seed(sampling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if sampling is None else {key: value for key, value in sampling.items() if key != "seed"}


def _rows(label: str, suite: str, responses: Responses) -> list[dict[str, Any]]:
    """A record for each response; a refused one has no NLP."""
    nlp = [None if np.isnan(each) else float(each) for each in responses.mean_nlp]
    columns = {
        "id": responses.ids,
        "sample": responses.samples.tolist(),
        "correct": responses.correct.tolist(),
        "refused": responses.refused.tolist(),
        "tokens": responses.tokens.tolist(),
        "mean_nlp": nlp,
    }
    records = zip(*columns.values(), strict=True)
    return [{"model": label, "suite": suite, **dict(zip(columns, row, strict=True))} for row in records]


def _summary(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Table 15 for each model and suite."""

    def value(found: Mapping[str, Any], kind: str) -> float | None:
        mean = found["nlp"][kind]["of_responses"]
        return None if mean is None else float(mean["value"])

    return {
        model["model"]: {
            suite: {
                "pass_rate": found["pass_rate"]["value"],
                "median_tokens": found["tokens"]["median"],
                "nlp": value(found, ALL),
                "nlp_correct": value(found, CORRECT),
                "nlp_incorrect": value(found, INCORRECT),
            }
            for suite, found in model["suites"].items()
        }
        for model in models
    }
