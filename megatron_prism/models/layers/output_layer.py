"""The output layer of a model: logits with Granite's scaling and the tokenizer's vocabulary, or one loss per token.

Megatron's models make logits and hand them to a cross entropy. With labels, ours return the losses that
`token_loss.py` computes chunk by chunk, so the logits of all tokens never exist at once. The losses still come from the
output layer's own call, because DDP waits for a layer's weights in a hook of that call.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor

from megatron_prism.models.layers.token_loss import Head, token_losses


class OutputLayer(ColumnParallelLinear):
    """Megatron's output layer, which also scales and limits its logits.

    Attributes:
        logits_scaling: logits are divided by it (Granite).
        vocabulary_limit: rows from this one on, which only pad the vocabulary, have the logit -inf: a sampler never
            draws them, and a trainer that counted them would compute other log-probabilities for every token.
        labels: `[batch, seq]` while the model is called with labels; the layer then returns losses `[seq, batch]`.
    """

    logits_scaling: float
    vocabulary_limit: int | None
    labels: Tensor | None

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if self.labels is not None:
            used = self.weight if weight is None else weight
            assert isinstance(used, Tensor)
            head = Head(self.tp_group, self.sequence_parallel, self.logits_scaling, self.vocabulary_limit)
            return token_losses(input_, used, self.labels.transpose(0, 1), head), None
        logits, bias = super().forward(input_, weight, runtime_gather_output)
        if self.logits_scaling != 1.0:
            logits = logits / self.logits_scaling
        if self.vocabulary_limit is not None:
            width = logits.shape[-1]
            # Gathered logits begin at row 0, and those of one rank at the rank's first row.
            gathered = self.gather_output if runtime_gather_output is None else runtime_gather_output
            first = 0 if gathered else self.tp_group.rank() * width
            beyond = torch.arange(first, first + width, device=logits.device) >= self.vocabulary_limit
            logits = logits.masked_fill(beyond, float("-inf"))
        return logits, bias


class TokenLosses:
    """Mixin for Megatron's models: `forward(..., labels=...)` returns the losses of the output layer."""

    def forward(self, *inputs: Any, labels: Tensor | None = None, **keywords: Any) -> Any:
        layer: OutputLayer | None = getattr(self, "output_layer", None)
        if layer is None or labels is None:
            return super().forward(*inputs, labels=labels, **keywords)  # type: ignore[misc]
        layer.labels = labels
        try:
            return super().forward(*inputs, labels=labels, **keywords)  # type: ignore[misc]
        finally:
            layer.labels = None

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """`[batch, seq]`; the models call this with what the output layer returned."""
        return logits.transpose(0, 1).contiguous()


def install_output_layer(model: Any, logits_scaling: float) -> None:
    """Turn the output layer that a model has built (gpt_model.py, mamba_model.py) into an `OutputLayer`."""
    layer = model.output_layer
    layer.__class__ = OutputLayer
    layer.logits_scaling, layer.vocabulary_limit, layer.labels = logits_scaling, None, None


def install_vocabulary_limit(output_layer: Any, limit: int) -> None:
    """Rows of an `OutputLayer` from `limit` on only pad the vocabulary: they get no probability."""
    output_layer.vocabulary_limit = limit
