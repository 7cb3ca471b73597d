"""One rank's part of a training step in shapes only, with the bytes of everything that exists.

`one_rank` is the place: a process group of any size, a device without memory, a running session, and a counter. The
caller builds there, inside `building()`, what a rank of a real run builds, takes a step, and asks for the report.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from megatron_prism.models.architecture import Architecture
from megatron_prism.planning.memory import Memory
from megatron_prism.platform.fake_device import META, shapes_only
from megatron_prism.platform.fake_exchanges import Exchanges, recorded_exchanges
from megatron_prism.platform.fake_group import one_rank_of
from megatron_prism.platform.fake_memory import LiveBytes
from megatron_prism.platform.process_groups import ParallelConfig, session


@dataclass(frozen=True)
class RankReport:
    """What one rank of a stage would hold.

    Attributes:
        rank: of `world_size`.
        pipeline_stage: of the rank, from 0.
        parameters: numbers in this rank's weights.
        counted: bytes by name, of tensors that the step has made: weights, gradients, optimizer, reference (model),
            activations (what forward passes keep, when it is most), working (what exists besides at the peak of the
            passes), update (what the optimizer's step makes and frees), and total, the peak of all.
        seconds: that the dry run of this rank took.
        operations: that it executed.
        planned: the planner's bytes, by the same names.
        exchanges: with the neighbours in the pipeline.
    """

    rank: int
    world_size: int
    pipeline_stage: int
    parameters: int
    counted: dict[str, int]
    seconds: float
    operations: int
    planned: dict[str, float] = field(default_factory=dict)
    exchanges: Exchanges = field(default_factory=Exchanges)


class RankCount:
    """Counts what exists in one rank's dry run."""

    def __init__(self, live: LiveBytes, exchanges: Exchanges) -> None:
        self._live, self._exchanges, self._began = live, exchanges, time.perf_counter()
        self._before = self._kept = self._peak = 0

    @contextlib.contextmanager
    def passes(self, chunks: Iterable[Any]) -> Iterator[None]:
        """Around a step that calls `passes_end` between its passes and its update."""
        self._before = self._live.live
        self._live.reset_peak()
        hooks = [chunk.register_forward_hook(self._forward_ends) for chunk in chunks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def passes_end(self, loss: float, norm: float) -> bool:
        """To be called when the gradients are complete; allows the update."""
        self._peak = max(self._peak, self._live.peak - self._before)
        self._live.reset_peak()
        return True

    def _forward_ends(self, *_: Any) -> None:
        # A forward pass without gradients keeps nothing.
        if torch.is_grad_enabled():
            self._kept = max(self._kept, self._live.live - self._before)

    def report(
        self,
        rank: int,
        parallel: ParallelConfig,
        models: Sequence[Any],
        optimizer: Any,
        *,
        planned: Memory,
        reference: Sequence[Any] = (),
        cache: int = 0,
    ) -> RankReport:
        """The report after a step.

        Args:
            planned: of this rank's pipeline stage.
            cache: bytes of sampling's cache, which exists between updates.
        """
        seen: set[int] = set()
        parameters = [each for model in models for each in model.parameters()]
        held = {
            "weights": _bytes(parameters, seen),
            "gradients": _bytes((buffer.grad_data for model in models for buffer in _buffers(model)), seen),
            "optimizer": _bytes(_optimizer_tensors(optimizer), seen),
            "reference": _bytes((each for chunk in reference for each in chunk.parameters()), seen),
        }
        passing = {
            "activations": self._kept,
            "working": max(0, self._peak - self._kept),
            "cache": cache,
            # The optimizer's state is made in the first step, and is no part of what comes and goes.
            "update": max(0, self._live.peak - self._live.live),
        }
        most = max(passing["activations"] + passing["working"], cache, passing["update"])
        return RankReport(
            rank=rank,
            world_size=parallel.world_size,
            pipeline_stage=pipeline_stage(rank, parallel),
            parameters=sum(each.numel() for each in parameters),
            counted={**held, **passing, "total": sum(held.values()) + most},
            seconds=time.perf_counter() - self._began,
            operations=self._live.operations,
            planned=comparable(planned),
            exchanges=self._exchanges,
        )


def comparable(planned: Memory) -> dict[str, float]:
    """The planner's bytes by the names of `RankReport.counted`: without what is no tensor (NCCL, CUDA, slack)."""
    names = ("weights", "gradients", "optimizer", "reference", "activations", "cache", "update")
    found = {name: float(getattr(planned, name)) for name in names}
    # The loss comes before the backward passes of the layers, so one of the two is the peak.
    found["working"] = float(max(planned.working, planned.loss))
    held = sum(found[name] for name in names[:4])
    most = max(found["activations"] + found["working"], found["cache"], found["update"])
    return found | {"total": held + most}


@contextlib.contextmanager
def one_rank(parallel: ParallelConfig, rank: int, *, seed: int = 1, gpu: bool = True) -> Iterator[RankCount]:
    """This process is one rank of the layout, on a device without memory.

    Args:
        gpu: imitate a GPU; False: this CPU, to compare with runs on it.
    """
    with (
        one_rank_of(parallel.world_size, rank),
        shapes_only(gpu),
        session(parallel, seed),
        recorded_exchanges() as exchanges,
        LiveBytes() as live,
    ):
        yield RankCount(live, exchanges)


def building() -> contextlib.AbstractContextManager[Any]:
    """The context in which models and optimizers are built: all that they make is on the device without memory."""
    return META


def pipeline_stage(rank: int, parallel: ParallelConfig) -> int:
    """The pipeline stage of a rank: in Megatron's order of ranks the pipeline comes last (parallel_state.py:545)."""
    return rank * parallel.pipeline_model_parallel_size // parallel.world_size


def different_ranks(architecture: Architecture, parallel: ParallelConfig) -> list[int]:
    """The first rank of each pipeline stage that differs from those before it in its layers, or is an end.

    Of several equal stages the first keeps the most activations, because it runs the furthest ahead.
    """
    stages = alike_stages(architecture, parallel)
    return [stage * (parallel.world_size // len(stages)) for stage in dict.fromkeys(stages)]


def alike_stages(architecture: Architecture, parallel: ParallelConfig) -> list[int]:
    """For each pipeline stage the first one that has the same layers, and is an end only if this one is.

    Args:
        parallel: without `split=balanced`.
    """
    stages, virtual = (
        parallel.pipeline_model_parallel_size,
        parallel.virtual_pipeline_model_parallel_size or 1,
    )
    counts = parallel.layers_per_stage(architecture.num_layers)
    ends = list(accumulate(counts))
    kinds = architecture.kinds_of_layers
    known: dict[tuple[Any, ...], int] = {}
    found = []
    for stage, (count, end) in enumerate(zip(counts, ends, strict=True)):
        # The chunks of an interleaved stage lie apart; of dense layers, which alone have them, one is like the other.
        held = "".join(kinds[end - count : end]) if virtual == 1 else str(count)
        found.append(known.setdefault((stage == 0, stage == stages - 1, held), stage))
    return found


def filling_micro_batches(parallel: ParallelConfig, count: int) -> int:
    """How many of `count` micro-batches fill the pipeline; the others would repeat what these do.

    An interleaved first stage is ahead by two passes through the pipeline (schedules.py, get_pp_rank_microbatches).
    """
    stages = parallel.pipeline_model_parallel_size
    return min(count, stages * (2 if parallel.virtual_pipeline_model_parallel_size else 1))


def _buffers(model: Any) -> list[Any]:
    """The gradient buffers of a DDP-wrapped model."""
    return [*model.buffers, *model.expert_parallel_buffers]


def _optimizer_tensors(optimizer: Any) -> Iterator[Tensor]:
    """The optimizer's own weights and states; some of its weights may be the model's."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = part.optimizer
        if inner is None:
            continue
        for group in inner.param_groups:
            for parameter in group["params"]:
                yield parameter
                yield from (each for each in inner.state[parameter].values() if isinstance(each, Tensor))


def _bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of the storages that are not in `seen`, each counted once."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            total += storage.nbytes()
    return total
