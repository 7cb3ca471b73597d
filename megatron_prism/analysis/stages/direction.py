"""The stage behind `prism analyze direction`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.stage import AnalysisStage, models_after
from megatron_prism.pipeline.artifact import Artifact


@dataclass
class AnalyzeDirection(AnalysisStage):
    """The angles between the updates of two or more models; inputs are models, by the names that they have in tables.

    Fields:
        base: the input from which the others were trained.
    """

    kind: ClassVar[str] = "analysis_direction"

    base: str = "base"

    def analyze(self, inputs: Mapping[str, Artifact]) -> Analysis:
        from megatron_prism.analysis.direction_summary import analyze_direction

        others = models_after(self.base, inputs)
        return analyze_direction(inputs[self.base].path, list(others.values()), [self.base, *others])
