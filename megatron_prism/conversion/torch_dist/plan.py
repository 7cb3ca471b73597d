"""The tensors and pieces of a Megatron checkpoint, planned from the weights it will hold before a byte is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_prism.conversion.torch_dist.layout import Place, all_places
from megatron_prism.conversion.torch_dist.writer import PlannedTensor
from megatron_prism.conversion.weights import Weights
from megatron_prism.errors import CheckpointError
from megatron_prism.models.mappings import Rule, Shape


@dataclass(frozen=True)
class PiecePlan:
    """One piece: what of which parameter it holds, where in its tensor it stands, and its size there."""

    rule: Rule
    place: Place
    offset: Shape
    size: Shape


def plan_checkpoint(
    source: Weights, dtype: torch.dtype | None = None
) -> tuple[dict[str, PlannedTensor], list[PiecePlan]]:
    """Tensors by key, still without pieces, and the pieces that are to cover them, in order.

    Args:
        dtype: of all tensors; None keeps each its own.

    Raises:
        CheckpointError: where tensors that become one differ in dtype.
    """
    architecture = source.architecture
    tensors: dict[str, PlannedTensor] = {}
    pieces = []
    for rule, place in all_places(architecture):
        wanted = dtype or _one_dtype(source, rule)
        shape = place.shape(rule.megatron_shape(architecture))
        stacked = place.layer is not None
        whole = (architecture.num_layers, *shape) if stacked else shape
        tensor = tensors.setdefault(place.key, PlannedTensor(whole, wanted))
        if tensor.dtype is not wanted:
            raise CheckpointError(
                f"{source.path}: tensor '{rule.hf[0]}' is {wanted}, other layers have {tensor.dtype}; a Megatron "
                "checkpoint has one for all: name one to convert all to (--dtype fp32, bf16 or fp16)"
            )
        start = tuple(0 for _ in shape)
        pieces.append(
            PiecePlan(
                rule,
                place,
                (place.layer or 0, *start) if stacked else start,
                (1, *shape) if stacked else shape,
            )
        )
    return tensors, pieces


def _one_dtype(source: Weights, rule: Rule) -> torch.dtype:
    kinds = {source.dtypes[name] for name in rule.hf}
    if len(kinds) > 1:
        names = ", ".join(f"'{name}' {source.dtypes[name]}" for name in rule.hf)
        raise CheckpointError(
            f"{source.path}: {names}: tensors that become one in Megatron need one dtype: name one to convert all to "
            "(--dtype fp32, bf16 or fp16)"
        )
    return kinds.pop()
