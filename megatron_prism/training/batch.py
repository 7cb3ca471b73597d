"""The batch size of a step, and how its samples are spread over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.pipeline.config import positive
from megatron_prism.pipeline.stage import tuning
from megatron_prism.platform.process_groups import ParallelConfig


@dataclass
class BatchRamp:
    """A batch size that grows from `start` to `global_batch_size`, as Megatron-LM's `--rampup-batch-size` does.

    Attributes:
        start: sequences of the first steps.
        increment: sequences by which the size grows, several times.
        samples: sequences read while the size grows. Each size is kept for an equal share of them.
    """

    start: int
    increment: int
    samples: int

    def __post_init__(self) -> None:
        positive(self, "start", "increment", "samples", group="batch.ramp")


@dataclass
class BatchConfig:
    """The batch size of a step.

    Attributes:
        micro_batch_size: sequences that a data-parallel rank works on at once; the sums of a step do not depend on it.
        global_batch_size: sequences of a step, over all data-parallel ranks and micro-batches.
        ramp: smaller batches at the beginning; null: every step has `global_batch_size`.
    """

    sequence_length: int = 256
    micro_batch_size: int = tuning(8)
    global_batch_size: int = 8
    ramp: BatchRamp | None = None

    def __post_init__(self) -> None:
        positive(self, "sequence_length", "micro_batch_size", "global_batch_size")
        ramp = self.ramp
        if ramp is None:
            return
        growth = self.global_batch_size - ramp.start
        if growth <= 0 or growth % ramp.increment:
            raise ConfigError(
                f"batch.ramp: from start={ramp.start} in steps of increment={ramp.increment} the batch size does not "
                f"reach global_batch_size={self.global_batch_size}; choose start below it, and an increment that "
                f"divides the difference of {growth}"
            )

    def size_after(self, consumed_samples: int) -> int:
        """Sequences of the step that follows `consumed_samples` (num_microbatches_calculator.py:447 upstream)."""
        ramp = self.ramp
        if ramp is None or consumed_samples > ramp.samples:
            return self.global_batch_size
        increments = (self.global_batch_size - ramp.start) // ramp.increment
        # Whole numbers, so that no rounding moves the step at which the size grows.
        grown = consumed_samples * increments // ramp.samples
        return ramp.start + grown * ramp.increment

    def samples(self, steps: int) -> int:
        """Sequences that the first `steps` steps read."""
        if self.ramp is None:
            return steps * self.global_batch_size
        consumed = 0
        for step in range(steps):
            if consumed > self.ramp.samples:
                return consumed + (steps - step) * self.global_batch_size
            consumed += self.size_after(consumed)
        return consumed

    def micro_batches(self, parallel: ParallelConfig, size: int | None = None) -> int:
        """Micro-batches per step and data-parallel rank, of a step with `size` sequences (None: the global batch size).

        Raises:
            ParallelError: if the batch is not a whole number of micro-batches, or does not fit the pipeline.
        """
        name = "global_batch_size=" if size is None else "batch.ramp: a batch size of "
        size = self.global_batch_size if size is None else size
        data_parallel_size = parallel.data_parallel_size
        per_round = self.micro_batch_size * data_parallel_size
        if size % per_round:
            raise ParallelError(
                f"{name}{size} is not a multiple of micro_batch_size="
                f"{self.micro_batch_size} x data_parallel_size={data_parallel_size}"
            )
        count = size // per_round
        stages = parallel.pipeline_model_parallel_size
        if parallel.virtual_pipeline_model_parallel_size and count % stages:
            raise ParallelError(
                f"{count} micro-batches per step are not a multiple of pipeline_model_parallel_size={stages}. An "
                "interleaved pipeline needs a multiple; change global_batch_size or micro_batch_size"
            )
        return count

    def check_layout(self, parallel: ParallelConfig) -> None:
        """Raise a ParallelError if a batch, at any size of the ramp, is not a whole number of micro-batches."""
        self.micro_batches(parallel)
        if self.ramp is not None:
            for size in range(self.ramp.start, self.global_batch_size, self.ramp.increment):
                self.micro_batches(parallel, size)
