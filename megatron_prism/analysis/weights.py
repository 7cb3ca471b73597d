"""How every sub-component of every tensor changed from one model to several others, in a single pass over the files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_prism.analysis.change import Change, changes
from megatron_prism.analysis.inputs import dtype_name, open_models
from megatron_prism.analysis.streaming import Piece, scan
from megatron_prism.conversion.weights import Weights


class Changes(list[Change]):
    """The change of one piece in each of several models."""

    def __add__(self, other: list[Change]) -> Changes:  # type: ignore[override]
        return Changes(mine + theirs for mine, theirs in zip(self, other, strict=True))

    @property
    def finite(self) -> bool:
        """Whether no element is NaN or infinite: a sum of squares of finite fp32 numbers is finite in fp64."""
        return all(math.isfinite(each.base_squares + each.change_squares) for each in self)


@dataclass(frozen=True)
class WeightChanges:
    """Each model against the base.

    Attributes:
        models: the base first.
        pieces: with the change of each model after the base, in the order of the layers.
        remarks: messages for the user.
    """

    models: list[Weights]
    pieces: list[tuple[Piece, Changes]]
    remarks: list[str]


def compare_weights(
    base: Path, others: Sequence[Path], progress: Callable[[int], None] = lambda nbytes: None
) -> WeightChanges:
    """Measure the change of every tensor from `base` to each of `others`: Hugging Face or Megatron folders.

    Args:
        progress: called with the number of bytes of the base that were read since the last call.

    Raises:
        ConfigError: if no other model is given, or one twice.
        CheckpointError: for a damaged folder, another architecture (naming the key), or a NaN or an infinite number,
            naming the folder, the tensor and the row.
    """
    models, remarks = open_models(base, others)
    found = scan(models, lambda stored: Changes(changes(stored[0], stored[1:])), progress)
    return WeightChanges(models, list(found), remarks)


def stored_as(model: Weights) -> str:
    """The dtypes of a model's tensors, the most frequent first, such as 'bfloat16, float32'."""
    return ", ".join(dtype_name(each) for each, _ in Counter(model.dtypes.values()).most_common())
