"""The scores of an evaluation on disk. Stages that score a model in any other way write the same two files.

`scores.json`: {"suites": {SUITE: {"pass_rate", "low", "high", "interval", "confidence", "problems", "samples", "group",
...}}, ...}. `problems.json`: {SUITE: {PROBLEM: [right, samples]}}, where `right` may be fractional.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.artifact import write_json
from megatron_prism.pipeline.json_text import read_object

SCORES = "scores.json"
# What comparisons need.
PROBLEMS = "problems.json"
# Problem -> (right samples, samples).
Problems = Mapping[str, tuple[float, int]]


def write_scores(out: Path, scores: Mapping[str, Any], problems: Mapping[str, Problems]) -> None:
    """Write both files under `out`."""
    write_json(out / SCORES, scores)
    write_json(out / PROBLEMS, {suite: dict(each) for suite, each in problems.items()})


def read_scores(path: Path) -> dict[str, Any]:
    """The scores in an artifact folder (or in its scores.json).

    Raises:
        ArtifactError: if the file is missing or not in the form above.
    """
    file = path / SCORES if path.is_dir() else path
    if not file.is_file():
        raise ArtifactError(f"{file}: no such file; an evaluation artifact contains {SCORES}")
    try:
        scores = read_object(file, ArtifactError)
        suites = scores["suites"]
        for values in suites.values():
            float(values["pass_rate"]), float(values["low"]), float(values["high"])
    except ArtifactError as reason:
        raise ArtifactError(f"{reason}; evaluate again") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as reason:
        raise ArtifactError(f"{file}: not the scores of an evaluation ({reason}); evaluate again") from None
    return dict(scores)


def read_problems(path: Path) -> dict[str, dict[str, tuple[float, int]]]:
    """suite -> problem -> (right samples, samples) of an artifact.

    Raises:
        ArtifactError: if the file is missing or not in the form above.
    """
    file = path / PROBLEMS
    if not file.is_file():
        raise ArtifactError(f"{file}: no such file; an evaluation artifact contains {PROBLEMS}")
    try:
        return {
            suite: {problem: (float(right), int(samples)) for problem, (right, samples) in problems.items()}
            for suite, problems in read_object(file, ArtifactError).items()
        }
    except (ValueError, TypeError, AttributeError) as reason:
        raise ArtifactError(f"{file}: not the problems of an evaluation ({reason}); evaluate again") from None
