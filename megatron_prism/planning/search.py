"""The search for a layout: every combination of sizes is tried, refused with a reason, or ranked by its speed.

The reasons are the config's own checks: `build` makes the config, whose errors are counted here. The order depends on
nothing but the arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from megatron_prism.errors import PrismError
from megatron_prism.planning.gpu_profile import GpuProfile
from megatron_prism.planning.memory import Memory, states_of, training_memory
from megatron_prism.planning.state_bytes import StateBytes
from megatron_prism.planning.step_time import Job, StepTime, step_time
from megatron_prism.platform.process_groups import ParallelConfig

# Share of a GPU's memory that stays free, for what the arithmetic does not see.
RESERVE = 0.08
RECOMPUTE = ("none", "selective", "full")
# Virtual stages and split of a pipeline.
PIPELINES: tuple[tuple[int | None, str], ...] = ((None, "even"), (None, "balanced"), (2, "even"), (4, "even"))
MICRO_BATCHES = (1, 2, 4, 8)
LARGEST_PIPELINE, LARGEST_CONTEXT = 8, 16


@dataclass(frozen=True)
class Option:
    """What the search chooses."""

    parallel: ParallelConfig
    recompute: str
    micro_batch_size: int

    def order(self) -> tuple[object, ...]:
        """The simpler of two options comes first."""
        p = self.parallel
        return (
            p.pipeline_model_parallel_size,
            p.context_parallel_size,
            p.tensor_model_parallel_size,
            p.virtual_pipeline_model_parallel_size or 1,
            p.split != "even",
            RECOMPUTE.index(self.recompute),
            self.micro_batch_size,
        )

    def describe(self) -> str:
        return f"{describe_layout(self.parallel)}, recompute {self.recompute}, micro-batch {self.micro_batch_size}"


@dataclass(frozen=True)
class Ranked:
    """An option that fits, with its memory and time."""

    option: Option
    memory: Memory
    time: StepTime


@dataclass
class Refusal:
    """Options that were refused for the same reason.

    Attributes:
        example: the message of the first one.
    """

    example: str
    count: int = 0


@dataclass
class Found:
    """The result of a search.

    Attributes:
        ranked: what fits, the fastest first.
        refused: by reason, without its numbers.
        untried: options that are slower for certain, because the same layout fits with less recomputation, or larger
            than one that does not fit.
        smallest: bytes of the option that needs the least, whether or not it fits; None if all were refused.
    """

    ranked: list[Ranked] = field(default_factory=list)
    refused: dict[str, Refusal] = field(default_factory=dict)
    untried: int = 0
    smallest: float | None = None

    def refuse(self, message: str) -> None:
        reason = re.sub(r"[\d,.]*\d", "N", message.split(";")[0].split(" (")[0])
        self.refused.setdefault(reason, Refusal(message)).count += 1


def layouts(gpus: int, gpu: GpuProfile) -> Iterator[ParallelConfig]:
    """All layouts of exactly this many GPUs with tensor parallelism inside a node."""
    for tp in _powers(min(gpu.gpus_per_node, gpus)):
        for pp in _powers(LARGEST_PIPELINE):
            for cp in _powers(LARGEST_CONTEXT):
                if gpus % (tp * pp * cp):
                    continue
                for virtual, split in PIPELINES if pp > 1 else PIPELINES[:1]:
                    yield ParallelConfig(
                        tensor_model_parallel_size=tp,
                        pipeline_model_parallel_size=pp,
                        virtual_pipeline_model_parallel_size=virtual,
                        context_parallel_size=cp,
                        data_parallel_size=gpus // (tp * pp * cp),
                        sequence_parallel=tp > 1,
                        split=split,
                    )


def search(
    gpus: int,
    gpu: GpuProfile,
    build: Callable[[Option], Job],
    seconds: Callable[[Job], StepTime] = step_time,
    *,
    micro_batches: Sequence[int] = MICRO_BATCHES,
) -> Found:
    """Try all layouts of `gpus` GPUs.

    Args:
        build: makes and checks the config of an option; its PrismError is the reason of a refusal.
        seconds: the time of a step.
        micro_batches: sizes to try.
    """
    found = Found()
    limit = gpu.memory * (1 - RESERVE)
    for parallel in layouts(gpus, gpu):
        states: tuple[StateBytes, ...] = ()
        for place, size in enumerate(micro_batches):
            fits = False
            for number, recompute in enumerate(RECOMPUTE):
                option = Option(parallel, recompute, size)
                try:
                    job = build(option)
                except PrismError as problem:
                    found.refuse(str(problem))
                    continue
                states = states or states_of(job.architecture, job.parallel, job.work)
                job = replace(job, states=states)
                memory = training_memory(job.architecture, job.parallel, job.work, states)
                found.smallest = min(found.smallest or memory.total, memory.total)
                if memory.total > limit:
                    found.refuse(f"does not fit: needs {memory.total / 1e9:.1f} GB of {limit / 1e9:.1f}")
                    continue
                fits = True
                found.ranked.append(Ranked(option, memory, seconds(job)))
                found.untried += len(RECOMPUTE) - number - 1
                break
            if states and not fits:
                found.untried += len(RECOMPUTE) * (len(micro_batches) - place - 1)
                break
    # Equal to a tenth of a percent: the simpler one.
    found.ranked.sort(key=lambda each: (-float(f"{each.time.tokens_per_second:.3g}"), each.option.order()))
    return found


def describe_layout(parallel: ParallelConfig) -> str:
    """'TP 2, SP, PP 4, DP 16'."""
    p, parts = parallel, parallel.short_sizes()
    if p.is_uneven:
        first, last = p.layers_in_first_stage, p.layers_in_last_stage
        parts.append(
            "balanced" if p.split == "balanced" else f"stages {first or '-'} .. {last or '-'} layers"
        )
    return ", ".join(parts) or "one GPU"


def _powers(largest: int) -> list[int]:
    return [2**exponent for exponent in range(largest.bit_length()) if 2**exponent <= largest]
