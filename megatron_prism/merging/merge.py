"""Several models become one (or one for each alpha), streamed: read, combined, rounded once, checked, written.

At no time is more than a block of each model in memory for each thread; only where a Megatron checkpoint was cut along
columns is one whole tensor held.
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
from megatron_prism.merging.outputs import Filling, check_config, lay_out, output_format, total_bytes
from megatron_prism.merging.settings import Blend, MergeSettings
from megatron_prism.merging.side_files import SideFiles, choose_side_files
from megatron_prism.models.components import components
from megatron_prism.models.families import parameter_count

T = TypeVar("T")


@dataclass(frozen=True)
class MergePlan:
    """A merge that has been found possible; no tensor has been read.

    Attributes:
        models: the base first where the method has one; the first gives dtypes and format where none are asked for.
        sources: for each blend, where the files beside the weights come from.
        dtype: of the results' tensors; None keeps the first model's.
        format: 'hf' or 'megatron'.
        bytes: of the tensors of all results.
        remarks: what a user should hear before it starts.
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
    base: Path | None = None,
    format: str | None = None,
    tokenizer_from: Path | None = None,
    dtype: torch.dtype | None = None,
) -> MergePlan:
    """Check that these folders can be merged so.

    Args:
        models: folders of either kind, in the order of the weights.
        base: what a method of changes starts from.
        format: 'hf' or 'megatron'; by default that of the first model.
        tokenizer_from: folder of the model whose tokenizer the result keeps; by default the heaviest model's.
        dtype: of the result's tensors; by default those of the first model.

    Raises:
        ConfigError: for settings that do not fit the models.
        CheckpointError: for models that do not fit each other, or a folder that is damaged.
    """
    if settings.kind.base and base is None:
        raise ConfigError(f"method={settings.method} adds changes of a base to it: name the base")
    if not settings.kind.base and base is not None:
        raise ConfigError(f"base: method={settings.method} has none; give it as a model with a weight")
    blends = settings.blends(len(models))
    folders = ([base] if base is not None else []) + list(models)
    opened, remarks = open_models(folders, tokenizer_from is not None)
    found = set(components(opened[0].architecture).values())
    for component in settings.component_weights:
        if component not in found:
            raise ConfigError(
                f"component weight {component}: {opened[0].path} has none; it has {', '.join(sorted(found))}"
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
        progress: gets the bytes that were written, now and then.

    Returns:
        Metrics: method, parameters, bytes, all remarks (the plan's first), and the weights of each result by component.

    Raises:
        CheckpointError: naming model, file and tensor, for a NaN or an infinite number.
        DataError: when the disk cannot hold the results.
    """
    free = shutil.disk_usage(out).free
    if free < plan.bytes:
        raise DataError(f"{out}: {plan.bytes / 1e9:.1f} GB are needed, the disk has {free / 1e9:.1f} GB left")
    folders = [out / blend.name if blend.name else out for blend in plan.blends]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    first = plan.models[0]
    fillings, remarks = lay_out(plan.format, first, folders, plan.sources, plan.dtype)
    with (
        OpenFiles(os.O_RDONLY) as sources,
        OpenFiles(os.O_WRONLY) as targets,
        Workers(len(plan.models)) as workers,
        # Only a Megatron checkpoint's chunks are collected; getting ready for that takes longer than a small merge.
        quick_collection()
        if any(isinstance(model, MegatronWeights) for model in plan.models)
        else nullcontext(),
    ):
        stream = _Stream(plan, sources, targets, workers)
        for filling in fillings:
            for nbytes in stream.fill(filling):
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


class _Stream:
    """Fills the holes of the results, one tensor (or piece of a Megatron tensor) after the other."""

    def __init__(self, plan: MergePlan, sources: OpenFiles, targets: OpenFiles, workers: Workers) -> None:
        self._plan, self._sources, self._targets, self._workers = plan, sources, targets, workers
        self._components = components(plan.models[0].architecture)
        others = len(plan.models) - (1 if plan.settings.kind.base else 0)
        self._combine: Combiner = combiner(plan.settings, others)

    def fill(self, filling: Filling) -> Iterator[int]:
        """Fill one hole of every result; yields the bytes written."""
        opened = {
            name: [TensorBytes(model, name, self._sources) for model in self._plan.models]
            for name in {each.name for each in filling.content}
        }
        for name, tensors in opened.items():
            self._combine.learn(name, self._elements(name), self._scan(name, tensors))
        weights = {
            name: [blend.in_component(self._components[name]) for blend in self._plan.blends]
            for name in opened
        }
        holes = [(self._targets[hole.file], hole) for hole in filling.holes]

        def work(scratch: Scratch, block: Block) -> int:
            tensors, raw = scratch.read(opened[block.name], block)
            terms = Terms(tensors, raw, filling.dtype)
            written = 0
            for (handle, hole), shares in zip(holes, weights[block.name], strict=True):
                result = self._combine(block, terms, shares, scratch)
                if not _fits(result, filling.dtype):
                    self._blame(block, tensors, result, filling.dtype)
                values = scratch.round(result, filling.dtype)
                written += len(values)
                try:
                    _write(handle, values, hole.offset + block.place * filling.dtype.itemsize)
                except OSError as problem:
                    raise CheckpointError(
                        f"{hole.file}: tensor '{block.name}' cannot be written ({problem.strerror})"
                    ) from problem
            return written

        yield from self._workers.map(work, filling.blocks())
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
                        self._blame(block, tensors, tensor, torch.float32)
                return work(tensors)

            return self._workers.map(checked, blocks(name, 0, self._elements(name)))

        return scan

    def _blame(self, block: Block, tensors: Sequence[Tensor], result: Tensor, dtype: torch.dtype) -> None:
        """Raise a CheckpointError that names the model a NaN or an infinite number came from."""
        shape = self._plan.models[0].shapes[block.name]
        for model, tensor in zip(self._plan.models, tensors, strict=True):
            wrong = (~torch.isfinite(tensor)).nonzero()
            if len(wrong):
                place = int(wrong[0])
                row = (block.first + place) // math.prod(shape[1:])
                raise CheckpointError(
                    f"{model.path}: tensor '{block.name}' holds {float(tensor[place])} in row {row}; a merge would "
                    "spread it, so mend or leave out this model"
                )
        raise CheckpointError(
            f"tensor '{block.name}': these weights give {float(result.abs().max()):.4g}, more than {dtype} holds "
            f"({torch.finfo(dtype).max:.4g}); use smaller weights"
        )


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether all fp32 values are numbers, and finite when they are rounded to `dtype`."""
    largest = max(abs(float(end)) for end in torch.aminmax(values))
    return math.isfinite(float(torch.tensor(largest).to(dtype)))


def _write(handle: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], offset + done)
