"""The stage that exports a trained model to a Hugging Face folder, and fails if the logits differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.errors import CheckpointError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import positive
from megatron_prism.pipeline.stage import Stage

CHECK_BATCH, CHECK_LENGTH, CHECK_SEED = 2, 64, 1234


@dataclass
class ExportHF(Stage):
    """Inputs: `model` (a train artifact) and `tokenizer`. Output: `model/`, a transformers folder in fp32.

    Attributes:
        tolerance: largest allowed logit difference, relative to the largest logit where that is below 1
            (Granite divides its logits, so an absolute bound alone would let a wrong multiplier pass).
    """

    kind: ClassVar[str] = "export"

    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        positive(self, "tolerance")

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        import torch

        from megatron_prism.conversion.checkpoint_io import load_weights
        from megatron_prism.conversion.export_hf import compare_logits, export_model
        from megatron_prism.models.architecture import Architecture
        from megatron_prism.models.build import build_model, parameter_count
        from megatron_prism.platform.hardware import device
        from megatron_prism.platform.process_groups import session

        architecture = Architecture.load(inputs["model"].file("architecture.json"))
        folder = out / "model"
        with session():
            model = build_model(architecture).to(device())
            load_weights([model], inputs["model"].file("checkpoint"))
            export_model(model, architecture, inputs["tokenizer"].path, folder)
            length = min(CHECK_LENGTH, architecture.max_position_embeddings)
            generator = torch.Generator().manual_seed(CHECK_SEED)
            tokens = torch.randint(architecture.vocab_size, (CHECK_BATCH, length), generator=generator)
            compared = compare_logits(model, folder, tokens)
            parameters = parameter_count(model)
        allowed = self.tolerance * min(1.0, compared.max_abs_logit)
        # Written so that a NaN fails too.
        if not compared.max_abs_difference <= allowed:
            raise CheckpointError(
                f"{folder}: transformers' logits differ by {compared.max_abs_difference:.3g}, more "
                f"than {allowed:.3g} (tolerance={self.tolerance}, largest logit {compared.max_abs_logit:.3g})"
            )
        return {
            "max_abs_logit_difference": compared.max_abs_difference,
            "top1_agreement": compared.top1_agreement,
            "parameters": parameters,
            "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        }
