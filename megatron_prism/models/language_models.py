"""Megatron's two language models, with losses that never hold the logits of all tokens (layers/output_layer.py)."""

from __future__ import annotations

from megatron.core.models.gpt import GPTModel
from megatron.core.models.mamba import MambaModel

from megatron_prism.models.layers.output_layer import TokenLosses


class DenseModel(TokenLosses, GPTModel):
    """A dense Transformer."""


class HybridModel(TokenLosses, MambaModel):
    """Attention, Mamba-2 and MLP layers in any order."""
