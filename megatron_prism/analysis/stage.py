"""The base of the stages that analyse: they write the same files as the commands."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prism.analysis.result import Analysis, write_analysis
from megatron_prism.errors import ConfigError, suggest
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger

log = get_logger(__name__)


@dataclass
class AnalysisStage(Stage):
    """A stage whose outputs are those of `write_analysis`, and whose metrics are the summary.

    Its kind is "analysis_VERB".
    """

    @abstractmethod
    def analyze(self, inputs: Mapping[str, Artifact]) -> Analysis:
        """The analysis of the inputs' artifacts."""

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        analysis = self.analyze(inputs)
        for remark in analysis.remarks:
            log.warning("%s", remark)
        write_analysis(analysis, out)
        return dict(analysis.summary)


def models_after(base: str, inputs: Mapping[str, Artifact]) -> dict[str, Path]:
    """The folders of all inputs but `base`, by the names that they have in tables.

    Raises:
        ConfigError: if no input has the name `base`.
    """
    if base not in inputs:
        raise ConfigError(f"base={base}: no input has this name{suggest(base, inputs)}")
    return {name: artifact.path for name, artifact in inputs.items() if name != base}
