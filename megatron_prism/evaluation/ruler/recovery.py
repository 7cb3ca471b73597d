"""How much of a lost ability came back, from three models asked the same samples."""

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
    before: Scores, lost: Scores, restored: Scores, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """(restored - lost) / (before - lost) of the means over tasks: 1 is all that was lost, below 0 is a further loss.

    The interval is a percentile bootstrap of samples within each task, each sample with its three scores, for the
    three models answered the same ones.

    Returns:
        None where nothing was lost: the interval of the loss reaches 0, and a share of it has no meaning.

    Raises:
        ArtifactError: when the three were not asked the same samples.
    """
    generator = np.random.default_rng(seed)
    tasks = [_together(task, before, lost, restored) for task in before]
    mean = np.mean([scores.mean(axis=0) for scores in tasks], axis=0)
    drawn = np.zeros((RESAMPLES, 3))
    for scores in tasks:
        chosen = generator.integers(len(scores), size=(RESAMPLES, len(scores)))
        drawn += scores[chosen].mean(axis=1) / len(tasks)
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    if np.quantile(drawn[:, 0] - drawn[:, 1], ends[0]) <= 0:
        return None
    # Where a resample lost nothing the share is infinite, which the quantiles take as it is.
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (drawn[:, 2] - drawn[:, 1]) / (drawn[:, 0] - drawn[:, 1])
    low, high = np.nanquantile(shares, ends)
    share = (mean[2] - mean[1]) / (mean[0] - mean[1])
    return Interval(float(share), float(low), float(high), "paired bootstrap within tasks")


def _together(task: str, *models: Scores) -> NDArray[np.float64]:
    """`[samples, models]`"""
    asked = [set(model.get(task, {})) for model in models]
    if any(each != asked[0] for each in asked):
        raise ArtifactError(f"task '{task}': the models were not asked the same samples; evaluate them alike")
    return np.array([[model[task][index] for model in models] for index in sorted(asked[0])])
