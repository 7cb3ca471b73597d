"""The stage behind `prism analyze confidence`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.stage import AnalysisStage
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import positive


@dataclass
class AnalyzeConfidence(AnalysisStage):
    """Pass rate, length and confidence of models, from the answers that their evaluations kept.

    Inputs: label of a model -> its evaluation.

    Fields:
        suites: only these; none: all that every evaluation has.
        least_problems: a mean over correct or incorrect answers is given if they belong to so many problems.
        confidence: coverage of the intervals.
    """

    kind: ClassVar[str] = "analysis_confidence"

    suites: list[str] = field(default_factory=list)
    least_problems: int = 10
    confidence: float = 0.95

    def __post_init__(self) -> None:
        positive(self, "least_problems")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence={self.confidence}: must be between 0 and 1, for example 0.95")

    def analyze(self, inputs: Mapping[str, Artifact]) -> Analysis:
        from megatron_prism.analysis.confidence import analyze_confidence

        return analyze_confidence(
            {label: artifact.path for label, artifact in inputs.items()},
            self.suites,
            least_problems=self.least_problems,
            confidence=self.confidence,
        )
