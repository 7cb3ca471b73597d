"""What a rank computes at once."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.planning.state_bytes import StatePrecision

# Bytes of a weight and of an activation.
ELEMENT = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Workload:
    """What a rank computes at once.

    Attributes:
        sequence_length: tokens of a row, before context parallelism cuts it.
        micro_batch_size: rows.
        micro_batches: of a step; a pipeline holds several at a time.
        recompute: as in TrainConfig.
        element: bytes of an activation and of a weight: 2 for bf16, 4 for fp32.
        trainable: as in TrainConfig.
        reference: whether there is a reference model.
        cached_tokens: tokens whose keys and values sampling keeps; they do not exist during an update.
        cached_texts: texts whose Mamba states sampling keeps.
        padding: tokens that attention and scans process per token of the row; below 2 for separated documents.
        precision: of gradients and optimizer state; None: what `element` has by default.
        bucket: `kernels.bucket_size`.
        overlap: whether gradients are reduced during the backward pass.
        fp8: whether linear layers compute in FP8.
    """

    sequence_length: int
    micro_batch_size: int = 1
    micro_batches: int = 1
    recompute: str = "none"
    element: int = 2
    trainable: str = "all"
    reference: bool = False
    cached_tokens: int = 0
    cached_texts: int = 0
    padding: float = 1.0
    precision: StatePrecision | None = None
    bucket: int | None = None
    overlap: bool = True
    fp8: bool = False

    @property
    def kept(self) -> StatePrecision:
        """The precision of gradients and optimizer state."""
        return self.precision or StatePrecision.of("bf16" if self.element == 2 else "fp32")
