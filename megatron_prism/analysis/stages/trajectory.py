"""The stage behind `prism analyze trajectory`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.stage import AnalysisStage
from megatron_prism.errors import ConfigError, suggest
from megatron_prism.pipeline.artifact import Artifact


@dataclass
class AnalyzeTrajectory(AnalysisStage):
    """The steps that a run has kept (`checkpoints.weights_every`), against the model with which it began.

    The inputs are models, by the names that they have in tables. All but these two are other runs from the same start,
    whose changed elements are compared with those of the run.

    Fields:
        start: the input with the model before the first step.
        trained: the input with the run.
    """

    kind: ClassVar[str] = "analysis_trajectory"

    start: str = "start"
    trained: str = "run"

    def __post_init__(self) -> None:
        if self.start == self.trained:
            raise ConfigError(f"start={self.start}: is the run itself; name the model with which it began")

    def analyze(self, inputs: Mapping[str, Artifact]) -> Analysis:
        from megatron_prism.analysis.trajectory_summary import analyze_trajectory

        named = {"start": self.start, "trained": self.trained}
        for field, name in named.items():
            if name not in inputs:
                raise ConfigError(f"{field}={name}: no input has this name{suggest(name, inputs)}")
        others = {name: artifact.path for name, artifact in inputs.items() if name not in named.values()}
        return analyze_trajectory(
            inputs[self.start].path,
            [inputs[self.trained].path],
            list(others.values()),
            names=(self.start, list(others)),
        )
