"""Linear combinations of models tensor by tensor in memory, as a merge would write them: for a model that is running.

Each element is the correctly rounded sum (`exact`), rounded once to the dtype that the merge's file would have. Models
with the weight 0 are not read, and a single model with the weight 1 is given as it is stored, bit by bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from types import TracebackType

import torch
from torch import Tensor

from megatron_prism.conversion.torch_dist.reader import quick_collection
from megatron_prism.conversion.weights import MegatronWeights, Weights
from megatron_prism.errors import CheckpointError
from megatron_prism.merging.blocks import Block, OpenFiles, Scratch, TensorBytes, Workers, blocks
from megatron_prism.merging.combine import LinearMerge, Terms


class MemoryMerge(AbstractContextManager["MemoryMerge"]):
    """Combines the same models many times, with other weights each time; a context manager, because files stay open.

    Args:
        models: of one architecture, as `merging.inputs.open_models` checks.
        dtype: of the results; None: of each tensor that of the first model.
    """

    def __init__(self, models: Sequence[Weights], dtype: torch.dtype | None = None) -> None:
        self._models, self._dtype = list(models), dtype
        self._combine = LinearMerge(lambda weights: weights)
        self._stack = ExitStack()
        self._files = OpenFiles(os.O_RDONLY)

    def __enter__(self) -> MemoryMerge:
        self._stack.enter_context(self._files)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def combine(self, weights: Sequence[Fraction]) -> Combination:
        """The combination with these weights, one for each model; a context manager, because it has threads."""
        used = [(model, weight) for model, weight in zip(self._models, weights, strict=True) if weight]
        return Combination(used, self._models[0], self._dtype, files=self._files, merge=self._combine)


class Combination(AbstractContextManager["Combination"]):
    """One combination; see `MemoryMerge.combine`."""

    def __init__(
        self,
        used: Sequence[tuple[Weights, Fraction]],
        first: Weights,
        dtype: torch.dtype | None,
        *,
        files: OpenFiles,
        merge: LinearMerge,
    ) -> None:
        self._used, self._first, self._dtype = used, first, dtype
        self._files, self._merge = files, merge
        self._stack = ExitStack()
        self._workers: Workers | None = None

    def __enter__(self) -> Combination:
        self._workers = self._stack.enter_context(Workers(len(self._used)))
        if any(isinstance(model, MegatronWeights) for model, _ in self._used):
            self._stack.enter_context(quick_collection())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        for model, _ in self._used:
            model.release()

    def tensors(self, names: Sequence[str]) -> list[Tensor]:
        """Whole tensors by their Hugging Face names; valid until the next call.

        Raises:
            CheckpointError: naming the tensor, if a number in it is not finite.
        """
        for model, _ in self._used:
            model.release()
        return [self._tensor(name) for name in names]

    def _tensor(self, name: str) -> Tensor:
        if len(self._used) == 1 and self._used[0][1] == 1:
            return self._used[0][0].tensor(name)
        assert self._workers is not None, "used as a context manager"
        shape = self._first.shapes[name]
        dtype = self._dtype or self._first.dtypes[name]
        weights = [weight for _, weight in self._used]
        opened = [TensorBytes(model, name, self._files) for model, _ in self._used]
        out = torch.empty(math.prod(shape), dtype=dtype)

        def work(scratch: Scratch, block: Block) -> None:
            tensors, stored = scratch.read(opened, block)
            result = self._merge(block, Terms(tensors, stored, dtype), weights, scratch)
            out[block.first : block.first + block.count] = result

        for _ in self._workers.map(work, blocks(name, 0, out.numel())):
            pass
        if not torch.isfinite(out).all():
            raise CheckpointError(
                f"tensor '{name}': the weights {', '.join(map(str, weights))} of "
                f"{', '.join(str(model.path) for model, _ in self._used)} give numbers that are not finite"
            )
        return out.view(shape)
