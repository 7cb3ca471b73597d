"""From the scores of tasks to those of a leaderboard: normalisation, averages, and their intervals.

A score is normalised to (score - guess) / (1 - guess), and 0 below the guess, where guess is 1 / number of answers
(huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization). Scores are shares, 0..1; the leaderboards show
them times 100.

The interval of a benchmark and of an average is the normal one. Its variance is that of the mean over independent
problems, task by task; for a metric that counts instructions, of the ratio of sums (Cochran 1977, section 2.11).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from megatron_prism.evaluation.harness.definitions import PROBLEMS, Benchmark
from megatron_prism.evaluation.harness.results import TaskResult, Value
from megatron_prism.evaluation.statistics.intervals import mean_rate

INTERVAL = "normal, problems within tasks"
GROUP = "general"
# The variance of one coin toss, for a task of one problem.
UNKNOWN_VARIANCE = 0.25


@dataclass(frozen=True)
class Score:
    """A number and its variance."""

    value: float
    variance: float

    def entry(self, confidence: float) -> dict[str, Any]:
        half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(self.variance)
        return {
            "score": self.value,
            "low": max(0.0, self.value - half),
            "high": min(1.0, self.value + half),
            "interval": INTERVAL,
            "confidence": confidence,
        }


def task_entry(result: TaskResult, rates: Mapping[str, float], confidence: float) -> dict[str, Any]:
    """The entry of a task among the `suites` of scores.json."""
    values = list(rates.values())
    # If some values are neither 0 nor 1, the variance is theirs and not that of a coin.
    estimate = mean_rate(values, confidence, several=not set(values) <= {0.0, 1.0})
    return {
        "pass_rate": estimate.rate,
        "low": estimate.low,
        "high": estimate.high,
        "interval": estimate.interval,
        "confidence": confidence,
        "problems": len(values),
        "samples": len(values),
        "group": GROUP,
        "metric": result.metrics[0],
        "lm_eval": result.aggregated,
        **result.record,
    }


def suite_entry(
    benchmarks: Sequence[Benchmark], results: Mapping[str, Mapping[str, TaskResult]], confidence: float
) -> dict[str, Any]:
    """The average of a suite and its benchmarks.

    Args:
        results: name of a task or group -> its tasks' results.
    """
    scores, entries = [], {}
    for benchmark in benchmarks:
        raw, normalised = benchmark_scores(benchmark, results)
        scores.append(normalised)
        entries[benchmark.name] = {
            **normalised.entry(confidence),
            "raw": raw,
            "metrics": list(benchmark.metrics),
            "tasks": list(benchmark.tasks),
            "normalised": any(benchmark.tasks.values()),
        }
    return {**_mean(scores).entry(confidence), "benchmarks": entries}


def benchmark_scores(
    benchmark: Benchmark, results: Mapping[str, Mapping[str, TaskResult]]
) -> tuple[float, Score]:
    """The plain score, and the one that the leaderboard averages."""
    parts, sizes, guesses = [], [], []
    for name, choices in benchmark.tasks.items():
        for result in results[name].values():
            parts.append(_mean([_score(result, metric) for metric in result.metrics], together=True))
            sizes.append(len(result.values[result.metrics[0]]))
            guesses.append(1 / choices if choices else 0.0)
    shares = [size / sum(sizes) for size in sizes]
    pooled = Score(
        sum(share * part.value for share, part in zip(shares, parts, strict=True)),
        sum(share * share * part.variance for share, part in zip(shares, parts, strict=True)),
    )
    if benchmark.mean_of == PROBLEMS:
        return pooled.value, _normalised(pooled, guesses[0])
    each = [_normalised(part, guess) for part, guess in zip(parts, guesses, strict=True)]
    return _mean(parts).value, _mean(each)


def _score(result: TaskResult, metric: str) -> Score:
    return Score(result.aggregated[metric], _variance(list(result.values[metric].values())))


def _variance(values: Sequence[Value]) -> float:
    """Of the mean over problems, or of the share of right ones among all their instructions."""
    if len(values) < 2:
        return UNKNOWN_VARIANCE
    lists = [value if isinstance(value, list) else [value] for value in values]
    sums, counts = np.array([sum(each) for each in lists]), np.array([len(each) for each in lists])
    deviations = (sums - counts * (sums.sum() / counts.sum())) / counts.mean()
    return float(deviations.var(ddof=1)) / len(values)


def _normalised(score: Score, guess: float) -> Score:
    return Score(max(0.0, (score.value - guess) / (1 - guess)), score.variance / (1 - guess) ** 2)


def _mean(scores: Sequence[Score], together: bool = False) -> Score:
    """The mean of independent scores, or of several metrics of the same problems, which rise and fall `together`."""
    value = sum(score.value for score in scores) / len(scores)
    if together:
        deviation = sum(math.sqrt(score.variance) for score in scores) / len(scores)
        return Score(value, deviation * deviation)
    return Score(value, sum(score.variance for score in scores) / len(scores) ** 2)
