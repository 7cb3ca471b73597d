"""The score of a prediction, and confidence intervals of means.

Recall is HELMET's `ruler_recall`: the share of the answers that the prediction contains, ignoring case. Question tasks
use HELMET's `substring_exact_match`: one answer is enough, and case, punctuation, articles and double spaces are
removed from answer and prediction first (SQuAD's normalisation). The score of a length is the mean over its tasks.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_prism.data.ruler.samples import Sample
from megatron_prism.evaluation.plan import LONG
from megatron_prism.evaluation.statistics.intervals import RESAMPLES, bootstrap_interval, wilson_interval

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Interval:
    """A mean in 0..1, its confidence interval, and the name of the method."""

    mean: float
    low: float
    high: float
    name: str


@dataclass(frozen=True)
class Scored:
    """One scored prediction; (task, length, index) names the sample."""

    task: str
    length: int
    index: int
    recall: float


def score(sample: Sample, prediction: str) -> float:
    """A prediction's score in 0..1 by the sample's metric."""
    if sample.metric == "any":
        return float(any(_holds(_normalised(prediction), answer) for answer in sample.answers))
    return sum(answer.lower() in prediction.lower() for answer in sample.answers) / len(sample.answers)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over samples: Wilson's interval if all values are 0 or 1 (or equal), otherwise a bootstrap over samples.

    Raises:
        ValueError: for no values, or a confidence outside (0, 1).
    """
    mean = float(np.mean(values))
    if set(values) <= {0.0, 1.0} or _equal(values):
        return Interval(mean, *wilson_interval(mean * len(values), len(values), confidence), "wilson")
    return Interval(mean, *bootstrap_interval(values, confidence), "bootstrap over samples")


def task_mean_interval(
    values: Mapping[str, Sequence[float]], confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean over tasks of their means, by a bootstrap of samples within each task.

    A bootstrap of a task whose samples are all equal would have width 0. Its Wilson interval is combined with the
    bootstrap of the other tasks by squares instead (Zou and Donner 2008, Statistics in Medicine 27:1693).

    Args:
        values: task -> scores of its samples.

    Raises:
        ValueError: for no task, a task without values, or a confidence outside (0, 1).
    """
    if not values:
        raise ValueError("a mean over tasks needs at least one task")
    generator = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    below, above = [], []
    for scores in values.values():
        data = np.asarray(scores, dtype=np.float64)
        if _equal(scores):
            fixed = mean_interval(scores, confidence)
            below.append((fixed.mean - fixed.low) / len(values))
            above.append((fixed.high - fixed.mean) / len(values))
            means += data.mean()
        else:
            means += data[generator.integers(len(data), size=(RESAMPLES, len(data)))].mean(axis=1)
    mean = float(np.mean([np.mean(scores) for scores in values.values()]))
    low, high = np.quantile(means / len(values), [(1 - confidence) / 2, (1 + confidence) / 2])
    name = "bootstrap within tasks" if len(below) < len(values) else "wilson of tasks"
    return Interval(
        mean,
        max(0.0, mean - math.hypot(mean - float(low), *below)),
        min(1.0, mean + math.hypot(float(high) - mean, *above)),
        name,
    )


def summary(scored: Iterable[Scored], confidence: float = 0.95) -> dict[str, Any]:
    """Scores by length and by task, JSON-ready.

    Returns:
        {"lengths": {"8192": {"recall", "low", "high", "interval", "samples", "tasks": {name: the same}}}}, lengths
        ascending, tasks in their original order.
    """
    values: dict[int, dict[str, list[float]]] = {}
    for each in scored:
        values.setdefault(each.length, {}).setdefault(each.task, []).append(each.recall)
    lengths = {}
    for length in sorted(values):
        tasks = {
            task: _entry(mean_interval(scores, confidence), len(scores))
            for task, scores in values[length].items()
        }
        samples = sum(map(len, values[length].values()))
        lengths[str(length)] = _entry(task_mean_interval(values[length], confidence), samples) | {
            "tasks": tasks
        }
    return {"lengths": lengths, "confidence": confidence}


def suites(lengths: Mapping[str, Mapping[str, Any]], confidence: float) -> dict[str, Any]:
    """The scores of `summary` as those of suites `ruler-LENGTH`, in the form of evaluation/scores.py."""
    return {
        suite_name(length): {
            "pass_rate": entry["recall"],
            **{key: entry[key] for key in ("low", "high", "interval", "samples")},
            "problems": entry["samples"],
            "confidence": confidence,
            "group": LONG,
        }
        for length, entry in lengths.items()
    }


def problems(scored: Iterable[Scored]) -> dict[str, dict[str, tuple[float, int]]]:
    """Every sample as a problem `TASK/INDEX` of the suite of its length, with its recall."""
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for each in scored:
        found.setdefault(suite_name(each.length), {})[f"{each.task}/{each.index}"] = (each.recall, 1)
    return found


def suite_name(length: int | str) -> str:
    """The name of a length as a suite."""
    return f"ruler-{length}"


def _entry(interval: Interval, samples: int) -> dict[str, Any]:
    return {
        "recall": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "interval": interval.name,
        "samples": samples,
    }


def _equal(values: Sequence[float]) -> bool:
    return len(set(values)) == 1


def _holds(prediction: str, answer: str) -> bool:
    """If normalisation leaves nothing of an answer ("A"), the normalised prediction must be empty, too."""
    normalised = _normalised(answer)
    return normalised in prediction if normalised else prediction == ""


def _normalised(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())
