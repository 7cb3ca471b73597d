"""The stage that compares the weights of models of a run with those of their base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.stage import AnalysisStage, models_after
from megatron_prism.pipeline.artifact import Artifact


@dataclass
class AnalyzeWeights(AnalysisStage):
    """`prism analyze weights`; the inputs are models, by the names that they have in tables.

    Fields:
        base: the input with which the others are compared.
    """

    kind: ClassVar[str] = "analysis_weights"

    base: str = "base"

    def analyze(self, inputs: Mapping[str, Artifact]) -> Analysis:
        from megatron_prism.analysis.weight_summary import analyze_weights

        others = models_after(self.base, inputs)
        names = [self.base, *others]
        return analyze_weights(inputs[self.base].path, list(others.values()), names)
