"""The stage behind `prism analyze direction`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.stage import AnalysisStage
from megatron_prism.analysis.stages.models import check_labels, folders
from megatron_prism.pipeline.artifact import Artifact


@dataclass
class AnalyzeDirection(AnalysisStage):
    """The cosine between the updates of models that were trained from one base.

    Inputs: label of a model -> its artifact.

    Fields:
        base: the label of the model from which the others were trained.
        models: the labels of these, two or more, in the order of the tables.
    """

    kind: ClassVar[str] = "analysis_direction"

    base: str
    models: list[str]

    def __post_init__(self) -> None:
        check_labels(self.base, self.models, least=2)

    def analyze(self, inputs: Mapping[str, Artifact]) -> Analysis:
        from megatron_prism.analysis.direction_summary import analyze_direction

        labels = [self.base, *self.models]
        base, *others = folders(inputs, labels)
        return analyze_direction(base, others, labels)
