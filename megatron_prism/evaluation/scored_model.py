"""Finds the artifacts that score one model: what a user names when models are compared.

A name is the folder of an artifact, the run folder of `prism eval`, or RUN:MODEL, which stands for all artifacts of a
run that score the model of stage MODEL.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.errors import ArtifactError, suggest
from megatron_prism.evaluation.plan import DOMAIN
from megatron_prism.evaluation.scores import PROBLEMS, read_problems, read_scores
from megatron_prism.pipeline.json_text import read_object
from megatron_prism.pipeline.previous_run import GRAPH

# The kinds of artifacts with scores.
SCORING = ("evaluation", "ruler", "harness")


@dataclass(frozen=True)
class ScoredModel:
    """The scores of one model.

    Attributes:
        folders: the artifacts.
        problems: suite -> problem -> (right samples, samples).
        groups: suite -> what it measures: "domain", "general" or "long".
        rates: suite -> pass rate.
    """

    folders: tuple[Path, ...]
    problems: Mapping[str, Mapping[str, tuple[float, int]]]
    groups: Mapping[str, str]
    rates: Mapping[str, float]

    @classmethod
    def read(cls, *folders: Path) -> ScoredModel:
        """The scores in artifact folders.

        Raises:
            ArtifactError: for a folder without scores, or a suite that two folders have.
        """
        problems: dict[str, dict[str, tuple[float, int]]] = {}
        groups, rates = {}, {}
        for folder in folders:
            found, scores = read_problems(folder), read_scores(folder)["suites"]
            for suite, each in found.items():
                if suite in problems:
                    raise ArtifactError(
                        f"{folder}: suite '{suite}' is scored twice for this model; name one artifact"
                    )
                problems[suite] = each
                groups[suite] = str(scores.get(suite, {}).get("group", DOMAIN))
                rates[suite] = float(scores[suite]["pass_rate"]) if suite in scores else float("nan")
        return cls(folders, problems, groups, rates)


def find_scored_model(name: str) -> ScoredModel:
    """The scores of the model that a user names; raises as `find_folders` and `ScoredModel.read`."""
    return ScoredModel.read(*find_folders(name))


def find_folders(name: str) -> list[Path]:
    """The artifacts that score the model that a user names.

    Raises:
        ArtifactError: if nothing there scores a model, or more than one model is scored.
    """
    path = Path(name)
    # Unlike os.path.isfile, Path.is_file raises for a name that is too long.
    if os.path.isfile(path / PROBLEMS):
        return [path]
    if os.path.isfile(path / GRAPH):
        return _of_run(path, None)
    run, colon, model = name.rpartition(":")
    if colon and os.path.isfile(Path(run) / GRAPH):
        return _of_run(Path(run), model)
    raise ArtifactError(
        f"{name}: neither an evaluation (a folder with {PROBLEMS}) nor a run folder; give runs/RUN/evaluate_MODEL, a "
        "run folder of `prism eval`, or RUN:MODEL"
    )


def _of_run(run: Path, model: str | None) -> list[Path]:
    """The finished artifacts of a run that score one model."""
    by_model: dict[str, list[Path]] = {}
    for stage in _stages(run):
        folder = run / stage["folder"]
        if stage["kind"] in SCORING and (folder / PROBLEMS).is_file():
            by_model.setdefault(stage["inputs"].get("model", ""), []).append(folder)
    if not by_model:
        raise ArtifactError(f"{run}: no evaluation of this run is complete")
    if model is None and len(by_model) == 1:
        return next(iter(by_model.values()))
    named = ", ".join(f"{run}:{each}" for each in by_model)
    if model is None:
        raise ArtifactError(f"{run}: the run scores {len(by_model)} models; name one: {named}")
    if model not in by_model:
        raise ArtifactError(f"{run}: scores no model '{model}'{suggest(model, by_model)}; there are {named}")
    return by_model[model]


def _stages(run: Path) -> list[dict[str, Any]]:
    try:
        stages: list[dict[str, Any]] = read_object(run / GRAPH, ArtifactError)["stages"]
        for stage in stages:
            str(stage["folder"]), str(stage["kind"]), dict(stage["inputs"])
    except (KeyError, TypeError, ValueError) as problem:
        raise ArtifactError(f"{run / GRAPH}: not the record of a run ({problem})") from None
    return stages
