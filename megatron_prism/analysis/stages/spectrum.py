"""The stage behind `prism analyze spectrum`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.stage import AnalysisStage, models_after
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import Artifact

MOST_TOP = 1024


@dataclass
class AnalyzeSpectrum(AnalysisStage):
    """The directions of the updates of models; the inputs are models, by the names that they have in tables.

    Fields:
        base: the input with which the others are compared.
        top: the number of leading directions that are found in a large matrix, and compared between models.
    """

    kind: ClassVar[str] = "analysis_spectrum"

    base: str = "base"
    top: int = 16

    def __post_init__(self) -> None:
        check_top(self.top)

    def analyze(self, inputs: Mapping[str, Artifact]) -> Analysis:
        from megatron_prism.analysis.spectrum_summary import analyze_spectrum

        others = models_after(self.base, inputs)
        return analyze_spectrum(
            inputs[self.base].path, list(others.values()), [self.base, *others], top=self.top
        )


def check_top(top: int) -> None:
    """Raise a ConfigError unless `top` is a sensible number of directions."""
    if not 1 <= top <= MOST_TOP:
        raise ConfigError(f"top={top}: must be a number of directions from 1 to {MOST_TOP}")
