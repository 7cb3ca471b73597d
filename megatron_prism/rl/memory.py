"""The memory of one GPU in reinforcement learning, on paper."""

from __future__ import annotations

from megatron_prism.planning.memory import Memory, training_memory
from megatron_prism.planning.workload import ELEMENT, Workload
from megatron_prism.rl.config import ReinforceConfig
from megatron_prism.training.memory import state_fields


def reinforcement_memory(config: ReinforceConfig) -> Memory:
    """The memory of an `rl` stage with the longest rows that it can have."""
    return training_memory(config.architecture, config.layout, reinforcement_workload(config))


def reinforcement_workload(config: ReinforceConfig) -> Workload:
    """What a rank of an `rl` stage computes at once, with the longest rows that it can have."""
    loop = config.loop
    answers = loop.prompts_per_step * loop.samples_per_prompt // loop.minibatches
    samples_here = config.engine.name == "megatron"
    return Workload(
        config.context_length,
        micro_batch_size=1 if config.packing else config.micro_batch_size,
        # At most one row per answer.
        micro_batches=max(1, answers // config.parallel.data_parallel_size),
        recompute=config.recompute,
        element=ELEMENT[config.dtype],
        reference=bool(config.objective.kl_coefficient),
        cached_tokens=config.slots * config.context_length if samples_here else 0,
        cached_texts=config.slots if samples_here else 0,
        # The texts of a packed row are computed in padded batches of fewer than twice its tokens (row_documents.py).
        padding=2.0 if config.packing else 1.0,
        **state_fields(config.dtype, config.precision, config.kernels, config.layout),
    )
