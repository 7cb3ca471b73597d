"""Compares the tensors of two model folders, of either kind, bit by bit, with one tensor group in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_prism.conversion.torch_dist.reader import quick_collection
from megatron_prism.conversion.weights import Weights
from megatron_prism.models.families import parameter_map


@dataclass(frozen=True)
class Difference:
    """A tensor that differs.

    Attributes:
        max_abs: the largest absolute difference; None if only the dtype differs.
    """

    name: str
    reason: str
    max_abs: float | None


def compare_tensors(
    first: Weights, second: Weights, progress: Callable[[int], None] = lambda nbytes: None
) -> list[Difference]:
    """The tensors that differ, in the order of the layers; an empty list if the folders hold the same tensors.

    Raises:
        CheckpointError: naming the first field in which the architectures differ.
    """
    first.architecture.require_same(second.architecture, str(second.path))
    found = []
    with quick_collection():
        for rule in parameter_map(first.architecture):
            for name in rule.hf:
                mine, theirs = first.tensor(name), second.tensor(name)
                if difference := _difference(name, mine, theirs):
                    found.append(difference)
                progress(mine.nbytes)
                del mine, theirs
            first.release()
            second.release()
    return found


def _difference(name: str, mine: Tensor, theirs: Tensor) -> Difference | None:
    if mine.dtype is theirs.dtype and torch.equal(_bits(mine), _bits(theirs)):
        return None
    largest = float((mine.float() - theirs.float()).abs().max())
    if mine.dtype is not theirs.dtype:
        reason = f"{mine.dtype} and {theirs.dtype}".replace("torch.", "")
        return Difference(name, reason, None if largest == 0 else largest)
    return Difference(name, "values differ", largest)


def _bits(tensor: Tensor) -> Tensor:
    """The tensor as integers, so that a NaN equals itself and 0.0 differs from -0.0."""
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)
