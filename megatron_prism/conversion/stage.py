"""The stages of conversion: import of a Hugging Face folder, and export to one, with a check of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import CheckpointError, ConfigError
from megatron_prism.pipeline.artifact import Artifact, folder_stamp
from megatron_prism.pipeline.config import one_of, positive
from megatron_prism.pipeline.placeholder import resolved
from megatron_prism.pipeline.stage import Stage
from megatron_prism.platform.console import get_logger

logger = get_logger(__name__)

CHECK_SEED = 1234
DTYPES = ("keep", "fp32", "bf16", "fp16")


@dataclass
class ImportHF(Stage):
    """Input: none, or `checkpoint`, an artifact with a Hugging Face folder `model/`. Output: a Megatron folder.

    Attributes:
        source: the Hugging Face folder, if there is no input.
        dtype: of the checkpoint; 'keep' keeps the dtype of each tensor.
    """

    kind: ClassVar[str] = "import"
    version: ClassVar[int] = 2

    source: str = ""
    dtype: str = "keep"

    def __post_init__(self) -> None:
        one_of(self.dtype, DTYPES, "dtype")
        if self.source:
            self.source = resolved(self.source)

    def identity(self) -> dict[str, Any]:
        """Includes size and time of the source's files, because a changed folder gives another checkpoint."""
        return super().identity() | {"files": folder_stamp(Path(self.source)) if self.source else []}

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        from megatron_prism.conversion.import_hf import import_checkpoint

        if bool(self.source) == ("checkpoint" in inputs):
            raise ConfigError(
                "source: name a Hugging Face folder, or connect a 'checkpoint' input, but not both"
            )
        source = Path(self.source) if self.source else inputs["checkpoint"].file("model")
        metrics = import_checkpoint(source, out, torch_dtype(self.dtype))
        for remark in metrics["remarks"]:
            logger.warning(remark)
        return metrics


@dataclass
class ExportHF(Stage):
    """Inputs: `model` (a Megatron folder), and `tokenizer` if the model has none. Output: `model/`, for transformers.

    Attributes:
        dtype: of the tensors; 'keep' keeps the checkpoint's.
        check: 'logits' runs the result and the checkpoint (both whole, in fp32) and compares their logits; 'tensors'
            reads both again and compares them bit by bit, which needs little memory; 'none' checks nothing.
        tolerance: largest allowed logit difference, relative to the largest logit if that is below 1.
    """

    kind: ClassVar[str] = "export"
    version: ClassVar[int] = 2

    dtype: str = "keep"
    check: str = "logits"
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        positive(self, "tolerance")
        one_of(self.dtype, DTYPES, "dtype")
        one_of(self.check, ("logits", "tensors", "none"), "check")
        if self.check == "tensors" and self.dtype != "keep":
            raise ConfigError(
                f"check=tensors compares bits, so dtype={self.dtype} is not possible; use dtype=keep"
            )

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        from megatron_prism.conversion.export_hf import export_checkpoint
        from megatron_prism.conversion.weights import MegatronWeights

        folder = out / "model"
        folder.mkdir()
        source = MegatronWeights(inputs["model"].path)
        tokenizer = inputs["tokenizer"].path if "tokenizer" in inputs else None
        metrics = export_checkpoint(source, folder, tokenizer=tokenizer, dtype=torch_dtype(self.dtype))
        for remark in metrics["remarks"]:
            logger.warning(remark)
        if self.check == "logits":
            return metrics | self._check_logits(source, folder)
        if self.check == "tensors":
            return metrics | _check_tensors(source, folder)
        return metrics

    def _check_logits(self, source: Any, folder: Path) -> dict[str, float]:
        import torch

        from megatron_prism.conversion.logits import (
            checkpoint_outputs,
            compare,
            folder_outputs,
            random_tokens,
        )

        tokens = random_tokens(source.architecture, seed=CHECK_SEED)
        ours = checkpoint_outputs(source, tokens, torch.float32, torch_dtype(self.dtype))
        compared = compare(ours, folder_outputs(folder, tokens, torch.float32), self.tolerance)
        allowed = compared.allowed(self.tolerance)
        # This form of the comparison also catches NaN.
        if not compared.max_abs_difference <= allowed:
            raise CheckpointError(
                f"{folder}: transformers' logits differ by {compared.max_abs_difference:.3g}, more "
                f"than {allowed:.3g} (tolerance={self.tolerance}, largest logit {compared.max_abs_logit:.3g}), "
                f"starting at {compared.departs or 'the head'}"
            )
        return {
            "max_abs_logit_difference": compared.max_abs_difference,
            "top1_agreement": compared.top1_agreement,
        }


def _check_tensors(source: Any, folder: Path) -> dict[str, int]:
    from megatron_prism.conversion.verify import compare_tensors
    from megatron_prism.conversion.weights import HFWeights

    differences = compare_tensors(source, HFWeights(folder))
    if differences:
        raise CheckpointError(f"{folder}: tensor '{differences[0].name}': {differences[0].reason}")
    return {"tensors_compared": len(source.shapes)}


def torch_dtype(name: str) -> Any:
    """The torch dtype of a config value; None for 'keep'."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
