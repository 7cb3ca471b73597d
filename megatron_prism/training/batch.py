"""How many samples make a step, and how they are spread over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prism.errors import ParallelError
from megatron_prism.platform.process_groups import ParallelConfig


@dataclass
class BatchConfig:
    """How many samples make a step. `global_batch_size` counts sequences over all data-parallel ranks."""

    sequence_length: int = 256
    micro_batch_size: int = 8
    global_batch_size: int = 8

    def micro_batches(self, parallel: ParallelConfig) -> int:
        """Micro-batches per step and data-parallel rank; a ParallelError says what does not divide."""
        data_parallel_size = parallel.data_parallel_size
        per_round = self.micro_batch_size * data_parallel_size
        if self.global_batch_size % per_round:
            raise ParallelError(
                f"global_batch_size={self.global_batch_size} is no multiple of micro_batch_size="
                f"{self.micro_batch_size} x data_parallel_size={data_parallel_size}"
            )
        count = self.global_batch_size // per_round
        stages = parallel.pipeline_model_parallel_size
        if parallel.virtual_pipeline_model_parallel_size and count % stages:
            raise ParallelError(
                f"{count} micro-batches per step are no multiple of pipeline_model_parallel_size={stages}, which an "
                "interleaved pipeline needs: change global_batch_size or micro_batch_size"
            )
        return count
