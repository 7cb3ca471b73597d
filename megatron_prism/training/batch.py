"""The batch size of a step, and how its samples are spread over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.errors import ParallelError
from megatron_prism.pipeline.stage import tuning
from megatron_prism.platform.process_groups import ParallelConfig


@dataclass
class BatchConfig:
    """The batch size of a step.

    Attributes:
        micro_batch_size: sequences that a data-parallel rank works on at once; the sums of a step do not depend on it.
        global_batch_size: sequences of a step, over all data-parallel ranks and micro-batches.
    """

    sequence_length: int = 256
    micro_batch_size: int = tuning(8)
    global_batch_size: int = 8

    def micro_batches(self, parallel: ParallelConfig) -> int:
        """Micro-batches per step and data-parallel rank.

        Raises:
            ParallelError: if the batch is not a whole number of micro-batches, or does not fit the pipeline.
        """
        data_parallel_size = parallel.data_parallel_size
        per_round = self.micro_batch_size * data_parallel_size
        if self.global_batch_size % per_round:
            raise ParallelError(
                f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size="
                f"{self.micro_batch_size} x data_parallel_size={data_parallel_size}"
            )
        count = self.global_batch_size // per_round
        stages = parallel.pipeline_model_parallel_size
        if parallel.virtual_pipeline_model_parallel_size and count % stages:
            raise ParallelError(
                f"{count} micro-batches per step are not a multiple of pipeline_model_parallel_size={stages}. An "
                "interleaved pipeline needs a multiple; change global_batch_size or micro_batch_size"
            )
        return count
