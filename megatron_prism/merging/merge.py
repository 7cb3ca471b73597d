"""Merge several models into one (or into one for each alpha), block by block: read, combine, round once, check, write.

Each thread holds one block of every model in memory. If a Megatron checkpoint is sharded along columns, one whole
tensor at a time is held instead.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from megatron_prism.conversion.torch_dist.reader import quick_collection
from megatron_prism.conversion.weights import MegatronWeights, Weights
from megatron_prism.errors import CheckpointError, ConfigError, DataError
from megatron_prism.merging.blocks import Block, OpenFiles, Scratch, TensorBytes, Workers, blocks
from megatron_prism.merging.combine import Combiner, Terms, combiner
from megatron_prism.merging.inputs import dtype_remarks, open_models
from megatron_prism.merging.outputs import WriteTask, check_config, output_format, preallocate, total_bytes
from megatron_prism.merging.settings import Blend, MergeSettings
from megatron_prism.merging.side_files import SideFiles, choose_side_files
from megatron_prism.models.components import components
from megatron_prism.models.families import parameter_count

T = TypeVar("T")


@dataclass(frozen=True)
class MergePlan:
    """A merge whose settings and models have been checked. No tensor has been read.

    Attributes:
        models: with the base first if the method has one. The first model's dtypes and format are the defaults.
        sources: for each blend, where the files next to the weights come from.
        dtype: of the results' tensors; None keeps the first model's.
        format: 'hf' or 'megatron'.
        bytes: of the tensors of all results.
        remarks: messages for the user before the merge starts.
    """

    settings: MergeSettings
    models: list[Weights]
    blends: list[Blend]
    sources: list[SideFiles]
    dtype: torch.dtype | None
    format: str
    bytes: int
    remarks: list[str]


def plan_merge(
    settings: MergeSettings,
    models: Sequence[Path],
    *,
    base: Path | None = None,
    format: str | None = None,
    tokenizer_from: Path | None = None,
    dtype: torch.dtype | None = None,
) -> MergePlan:
    """Check that these folders can be merged with these settings.

    Args:
        models: folders of either kind, in the order of the weights.
        base: the model to which the method adds the changes of the others.
        format: 'hf' or 'megatron'; by default that of the first model.
        tokenizer_from: folder of the model whose tokenizer the result keeps; by default the model with the largest
            weight.
        dtype: of the result's tensors; by default those of the first model.

    Raises:
        ConfigError: if the settings do not fit the models.
        CheckpointError: if the models do not fit each other, or a folder is damaged.
    """
    if settings.spec.base and base is None:
        raise ConfigError(f"method={settings.method} needs a base; name it (base, or --base DIR)")
    if not settings.spec.base and base is not None:
        raise ConfigError(
            f"base: method={settings.method} has no base; name this model with a weight instead"
        )
    blends = settings.blends(len(models))
    folders = ([base] if base is not None else []) + list(models)
    opened, remarks = open_models(folders, tokenizer_from is not None)
    found = set(components(opened[0].architecture).values())
    for component in settings.component_weights:
        if component not in found:
            raise ConfigError(
                f"component weight {component}: {opened[0].path} has no such component; use one of "
                f"{', '.join(sorted(found))}"
            )
    kind = output_format(format, opened[0])
    sources = [choose_side_files(opened, settings.shares(blend.weights), tokenizer_from) for blend in blends]
    check_config(kind, sources, opened[0])
    remarks += dtype_remarks(opened, dtype)
    for blend, source in zip(blends, sources, strict=True):
        remarks += [f"{blend.name}: {remark}" if blend.name else remark for remark in source.remarks]
    size = total_bytes(opened[0], dtype) * len(blends)
    return MergePlan(settings, opened, blends, sources, dtype, kind, size, settings.remarks() + remarks)


def merge(
    plan: MergePlan, out: Path, progress: Callable[[int], None] = lambda nbytes: None
) -> dict[str, Any]:
    """Write the results into the existing folder `out`, or one folder for each alpha in it.

    Args:
        out: the caller moves it to its final name.
        progress: called with the number of bytes written since the last call.

    Returns:
        Metrics: method, parameters, bytes, all remarks (the plan's first), and the weights of each result by component.

    Raises:
        CheckpointError: naming model, file and tensor, for a NaN or an infinite number.
        DataError: if the disk cannot hold the results.
    """
    free = shutil.disk_usage(out).free
    if free < plan.bytes:
        raise DataError(
            f"{out}: the result needs {plan.bytes / 1e9:.1f} GB, but the disk has only {free / 1e9:.1f} GB free"
        )
    folders = [out / blend.name if blend.name else out for blend in plan.blends]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    first = plan.models[0]
    tasks, remarks = preallocate(
        plan.format, first=first, folders=folders, sources=plan.sources, dtype=plan.dtype
    )
    with (
        OpenFiles(os.O_RDONLY) as sources,
        OpenFiles(os.O_WRONLY) as targets,
        Workers(len(plan.models)) as workers,
        # Only chunks of Megatron checkpoints need garbage collection, and preparing for it takes longer than a small
        # merge.
        quick_collection()
        if any(isinstance(model, MegatronWeights) for model in plan.models)
        else nullcontext(),
    ):
        merger = _Merger(plan, sources, targets, workers)
        for task in tasks:
            for nbytes in merger.write(task):
                progress(nbytes)
    named = components(first.architecture)
    return {
        "method": plan.settings.method,
        "parameters": parameter_count(first.architecture),
        "bytes": plan.bytes,
        "remarks": [*plan.remarks, *remarks],
        "weights": {
            blend.name or "result": {
                component: list(map(float, blend.in_component(component)))
                for component in sorted(set(named.values()))
            }
            for blend in plan.blends
        },
    }


class _Merger:
    """Writes the tensors of the results, one tensor (or one piece of a Megatron tensor) after the other."""

    def __init__(self, plan: MergePlan, sources: OpenFiles, targets: OpenFiles, workers: Workers) -> None:
        self._plan, self._sources, self._targets, self._workers = plan, sources, targets, workers
        self._components = components(plan.models[0].architecture)
        others = len(plan.models) - (1 if plan.settings.spec.base else 0)
        self._combine: Combiner = combiner(plan.settings, others)

    def write(self, task: WriteTask) -> Iterator[int]:
        """Write one tensor or piece of every result; yields the number of bytes written."""
        opened = {
            name: [TensorBytes(model, name, self._sources) for model in self._plan.models]
            for name in {each.name for each in task.rows}
        }
        for name, tensors in opened.items():
            self._combine.collect_statistics(name, self._elements(name), self._scan(name, tensors))
        weights = {
            name: [blend.in_component(self._components[name]) for blend in self._plan.blends]
            for name in opened
        }
        targets = [(self._targets[target.file], target) for target in task.targets]

        def work(scratch: Scratch, block: Block) -> int:
            tensors, stored = scratch.read(opened[block.name], block)
            terms = Terms(tensors, stored, task.dtype)
            written = 0
            for (handle, target), shares in zip(targets, weights[block.name], strict=True):
                result = self._combine(block, terms, shares, scratch)
                if not _fits(result, task.dtype):
                    self._raise_not_finite(block, tensors, result, task.dtype)
                values = scratch.round(result, task.dtype)
                written += len(values)
                try:
                    _write(handle, values, target.offset + block.out_first * task.dtype.itemsize)
                except OSError as problem:
                    raise CheckpointError(
                        f"{target.file}: tensor '{block.name}' cannot be written ({problem.strerror})"
                    ) from problem
            return written

        yield from self._workers.map(work, task.blocks())
        for model in self._plan.models:
            model.release()

    def _elements(self, name: str) -> int:
        return math.prod(self._plan.models[0].shapes[name])

    def _scan(self, name: str, opened: Sequence[TensorBytes]) -> Any:
        def scan(work: Callable[[Sequence[Tensor]], T]) -> Iterator[T]:
            def checked(scratch: Scratch, block: Block) -> T:
                tensors, _ = scratch.read(opened, block)
                for tensor in tensors:
                    if not _fits(tensor, torch.float32):
                        self._raise_not_finite(block, tensors, tensor, torch.float32)
                return work(tensors)

            return self._workers.map(checked, blocks(name, 0, self._elements(name)))

        return scan

    def _raise_not_finite(
        self, block: Block, tensors: Sequence[Tensor], result: Tensor, dtype: torch.dtype
    ) -> None:
        """Raise a CheckpointError that names the model with a NaN or an infinite number."""
        shape = self._plan.models[0].shapes[block.name]
        for model, tensor in zip(self._plan.models, tensors, strict=True):
            wrong = (~torch.isfinite(tensor)).nonzero()
            if len(wrong):
                place = int(wrong[0])
                row = (block.first + place) // math.prod(shape[1:])
                raise CheckpointError(
                    f"{model.path}: tensor '{block.name}' holds {float(tensor[place])} in row {row}, which would "
                    "spread to the result; repair this model or leave it out"
                )
        raise CheckpointError(
            f"tensor '{block.name}': these weights give {float(result.abs().max()):.4g}, more than {dtype} can hold "
            f"({torch.finfo(dtype).max:.4g}); use smaller weights"
        )


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether all fp32 values are finite after rounding to `dtype`, and none is a NaN."""
    largest = max(abs(float(end)) for end in torch.aminmax(values))
    return math.isfinite(float(torch.tensor(largest).to(dtype)))


def _write(handle: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], offset + done)
