"""The `merge` stage: several Megatron folders in, one Megatron folder out, for training, export or evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.conversion.stage import DTYPES, torch_dtype
from megatron_prism.errors import ConfigError, suggest
from megatron_prism.merging.settings import MergeSettings
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import one_of, seeds
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger

BASE = "base"
logger = get_logger(__name__)


@dataclass
class Merge(Stage):
    """Inputs: artifacts of train, import or merge, by name; `base` if the method has one. Output: a Megatron folder.

    Attributes:
        weights: input name -> weight, in the order of the models, for every input except the base. A weight is a
            number, or text for a fraction such as "1/3" or for more than 15 digits (see `merging/decimals.py`).
        method: linear, task-arithmetic, slerp, ties, dare or interpolate. The last is W(a, b) of the paper; its
            inputs are `base` and two models with the weights a and b.
        component_weights: component -> weight of the last model in it (see `MergeSettings`).
        normalize: divide the weights by their sum.
        density: for TIES and DARE: the fraction of each change that is kept.
        seed: for DARE.
        tokenizer_from: the input whose tokenizer, generation config and token ids the result keeps; by default the
            model with the largest weight.
        dtype: of the result; 'keep' is the dtype of the first model.
    """

    kind: ClassVar[str] = "merge"
    # 2: the sum is correctly rounded, and the files of the model with the largest weight are kept.
    version: ClassVar[int] = 2

    weights: dict[str, Any]
    method: str = "linear"
    component_weights: dict[str, Any] = field(default_factory=dict)
    normalize: bool = False
    density: float | None = None
    seed: int = 1
    tokenizer_from: str = ""
    dtype: str = "keep"

    def __post_init__(self) -> None:
        one_of(self.dtype, DTYPES, "dtype")
        seeds(self, "seed")
        settings = self._settings()
        if settings.spec.base and BASE in self.weights:
            raise ConfigError(f"weights: method={self.method} takes no weight for '{BASE}'; remove it")
        settings.blends(len(self.weights))
        if self.tokenizer_from:
            one_of(self.tokenizer_from, self._names(settings), "tokenizer_from")

    def _names(self, settings: MergeSettings) -> list[str]:
        """The names of the inputs that this stage needs."""
        return [*self.weights, *([BASE] if settings.spec.base else [])]

    def _settings(self) -> MergeSettings:
        return MergeSettings(
            method=self.method,
            weights=list(self.weights.values()),
            component_weights=dict(self.component_weights),
            normalize=self.normalize,
            density=self.density,
            seed=self.seed,
        )

    def identity(self) -> dict[str, Any]:
        """Includes the order of the models, because it decides the order of the sums and whose dtypes are kept."""
        return super().identity() | {"order": list(self.weights)}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        from megatron_prism.merging.merge import merge, plan_merge

        settings = self._settings()
        expected = self._names(settings)
        for name in expected:
            if name not in inputs:
                raise ConfigError(f"weights: this stage has no input '{name}'{suggest(name, inputs)}")
        for name in inputs:
            if name not in expected:
                raise ConfigError(
                    f"weights: input '{name}' has no weight; give it one (0 leaves it out of the sum)"
                )
        base = inputs[BASE].path if settings.spec.base else None
        tokenizer = inputs[self.tokenizer_from].path if self.tokenizer_from else None
        models = [inputs[name].path for name in self.weights]
        plan = plan_merge(
            settings,
            models,
            base=base,
            format="megatron",
            tokenizer_from=tokenizer,
            dtype=torch_dtype(self.dtype),
        )
        for remark in plan.remarks:
            logger.warning(remark)
        metrics = merge(plan, out)
        for remark in metrics["remarks"][len(plan.remarks) :]:
            logger.warning(remark)
        return metrics | {"models": list(self.weights)}
