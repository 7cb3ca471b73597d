"""How much of a lost ability was restored, from the scores of three models on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_prism.errors import ArtifactError, DataError
from megatron_prism.evaluation.ruler.scoring import Interval
from megatron_prism.pipeline.json_text import read_records

SAMPLES = "samples.jsonl.zst"
RESAMPLES = 10_000
# task -> index of the sample -> score.
Scores = Mapping[str, Mapping[int, float]]


def read_recalls(folder: Path) -> dict[int, dict[str, dict[int, float]]]:
    """Scores in a ruler artifact: length -> task -> index -> score.

    Raises:
        ArtifactError: if the file is missing or damaged.
    """
    found: dict[int, dict[str, dict[int, float]]] = {}
    try:
        for record, _ in read_records(folder / SAMPLES, keep_half_pairs=True):
            tasks = found.setdefault(int(record["length"]), {})
            tasks.setdefault(str(record["task"]), {})[int(record["index"])] = float(record["recall"])
    except DataError as problem:
        raise ArtifactError(f"{problem}; evaluate again") from None
    except (ValueError, KeyError, TypeError, OverflowError) as problem:
        raise ArtifactError(f"{folder / SAMPLES}: not readable ({problem!r}); evaluate again") from None
    return found


def recovered(
    before: Scores, lost: Scores, restored: Scores, *, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """(restored - lost) / (before - lost) of the means over tasks. 1: all of the loss is restored; below 0: a further
    loss.

    The interval is a percentile bootstrap of samples within each task. It is paired: each sample is drawn with its
    three scores, because the three models answered the same samples.

    Returns:
        None if the interval of the loss includes 0: then the loss is not significant, and a share of it has no meaning.

    Raises:
        ArtifactError: if the three models did not answer the same samples.
    """
    generator = np.random.default_rng(seed)
    tasks = [_paired_scores(task, before, lost, restored) for task in before]
    mean = np.mean([scores.mean(axis=0) for scores in tasks], axis=0)
    drawn = np.zeros((RESAMPLES, 3))
    for scores in tasks:
        chosen = generator.integers(len(scores), size=(RESAMPLES, len(scores)))
        drawn += scores[chosen].mean(axis=1) / len(tasks)
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    if np.quantile(drawn[:, 0] - drawn[:, 1], ends[0]) <= 0:
        return None
    # If a resample has no loss, its share is infinite, which the quantiles handle correctly.
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (drawn[:, 2] - drawn[:, 1]) / (drawn[:, 0] - drawn[:, 1])
    low, high = np.nanquantile(shares, ends)
    share = (mean[2] - mean[1]) / (mean[0] - mean[1])
    return Interval(float(share), float(low), float(high), "paired bootstrap within tasks")


def _paired_scores(task: str, *models: Scores) -> NDArray[np.float64]:
    """`[samples, models]`"""
    indices = [set(model.get(task, {})) for model in models]
    if any(each != indices[0] for each in indices):
        raise ArtifactError(
            f"task '{task}': the models did not answer the same samples; evaluate them with the same settings"
        )
    return np.array([[model[task][index] for model in models] for index in sorted(indices[0])])
