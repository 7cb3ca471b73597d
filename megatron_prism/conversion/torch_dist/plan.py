"""The tensors and pieces of a Megatron checkpoint, planned from the weights before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_prism.conversion.torch_dist.layout import TensorSlice, all_tensor_slices
from megatron_prism.conversion.torch_dist.writer import PlannedTensor
from megatron_prism.conversion.weights import Weights
from megatron_prism.errors import CheckpointError
from megatron_prism.models.mappings import Rule, Shape


@dataclass(frozen=True)
class PiecePlan:
    """One piece of a stored tensor.

    Attributes:
        rule, tensor_slice: the parameter, and the rows of it that the piece holds.
        offset, size: position and size of the piece in the stored tensor.
    """

    rule: Rule
    tensor_slice: TensorSlice
    offset: Shape
    size: Shape


def plan_checkpoint(
    source: Weights, dtype: torch.dtype | None = None
) -> tuple[dict[str, PlannedTensor], list[PiecePlan]]:
    """The tensors by key, without their pieces, and the pieces that will cover them, in order.

    Args:
        dtype: of all tensors; None keeps the dtype of each.

    Raises:
        CheckpointError: if tensors that are combined into one differ in dtype.
    """
    architecture = source.architecture
    tensors: dict[str, PlannedTensor] = {}
    pieces = []
    for rule, tensor_slice in all_tensor_slices(architecture):
        wanted = dtype or _one_dtype(source, rule)
        shape = tensor_slice.shape(rule.megatron_shape(architecture))
        stacked = tensor_slice.layer is not None
        whole = (architecture.num_layers, *shape) if stacked else shape
        tensor = tensors.setdefault(tensor_slice.key, PlannedTensor(whole, wanted))
        if tensor.dtype is not wanted:
            raise CheckpointError(
                f"{source.path}: tensor '{rule.hf[0]}' is {wanted}, but in other layers it is {tensor.dtype}; a "
                "Megatron checkpoint has one dtype for all layers, so convert all (--dtype fp32, bf16 or fp16)"
            )
        start = tuple(0 for _ in shape)
        pieces.append(
            PiecePlan(
                rule,
                tensor_slice,
                (tensor_slice.layer or 0, *start) if stacked else start,
                (1, *shape) if stacked else shape,
            )
        )
    return tensors, pieces


def _one_dtype(source: Weights, rule: Rule) -> torch.dtype:
    kinds = {source.dtypes[name] for name in rule.hf}
    if len(kinds) > 1:
        names = ", ".join(f"'{name}' {source.dtypes[name]}" for name in rule.hf)
        raise CheckpointError(
            f"{source.path}: {names}: these become one tensor in Megatron, which has one dtype, so convert all "
            "(--dtype fp32, bf16 or fp16)"
        )
    return kinds.pop()
