"""The memory of one GPU in training, on paper."""

from __future__ import annotations

from megatron_prism.planning.memory import ELEMENT, Memory, Workload, training_memory
from megatron_prism.training.config import TrainConfig


def stage_memory(config: TrainConfig) -> Memory:
    """The memory of a `train` stage."""
    batch = config.batch
    work = Workload(
        batch.sequence_length,
        batch.micro_batch_size,
        batch.micro_batches(config.layout),
        recompute=config.recompute,
        element=ELEMENT[config.dtype],
        trainable=config.trainable,
    )
    return training_memory(config.trained_architecture, config.layout, work)
