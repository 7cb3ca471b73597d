"""The deep dry run of an `rl` stage: one rank samples a token, compares with its reference, and updates, in shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from megatron_prism.generation.pipeline_forward import pipeline_forward
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.checkpoint_io import unwrap
from megatron_prism.models.layers.decode_cache import (
    Decode,
    DecodeCache,
    install_decode_cache,
    set_decode_cache,
)
from megatron_prism.planning.memory import stage_memory
from megatron_prism.platform.fake_device import META, whole_numbers
from megatron_prism.rl.config import ReinforceConfig
from megatron_prism.rl.memory import reinforcement_workload
from megatron_prism.rl.micro_batches import TrainingText
from megatron_prism.rl.policy import Policy
from megatron_prism.rl.rl_run import build_policy
from megatron_prism.training.dry_run import without_libraries
from megatron_prism.training.dry_step import (
    RankReport,
    building,
    different_ranks,
    filling_micro_batches,
    one_rank,
    pipeline_stage,
)

# Answers of a packed row; all have the same length.
TEXTS_PER_ROW = 4


def buildable(config: ReinforceConfig) -> tuple[ReinforceConfig, list[str]]:
    """The config with what this machine can build, and a line for each thing that it replaces."""
    kernels, precision, megatron, lines = without_libraries(config.kernels, config.precision, config.megatron)
    return replace(config, kernels=kernels, precision=precision, megatron=megatron), lines


def trained(config: ReinforceConfig) -> Architecture:
    """The architecture that is built."""
    return config.architecture


def ranks_of(config: ReinforceConfig) -> list[int]:
    """The ranks whose dry runs differ."""
    return different_ranks(trained(config), config.layout)


def texts(config: ReinforceConfig) -> list[TrainingText]:
    """Answers that fill the pipeline with the longest rows that the stage can have, on every data-parallel rank."""
    parallel, length = config.parallel, config.context_length
    rows = filling_micro_batches(parallel, max(1, _rows_per_rank(config))) * parallel.data_parallel_size
    per_row = min(TEXTS_PER_ROW, length) if config.packing else 1
    count = rows * (
        per_row if config.packing or parallel.pipeline_model_parallel_size > 1 else config.micro_batch_size
    )
    # A text of n + 1 tokens has n positions that predict one.
    tokens = length // per_row + 1
    prompt = max(1, tokens // 8)
    answer = tokens - prompt
    one = TrainingText([0] * prompt, [0] * answer, [0.0] * answer, advantage=1.0, weight=1.0)
    return [one] * count


def dry_run_rank(config: ReinforceConfig, rank: int, *, gpu: bool = True) -> RankReport:
    """Build what a rank of the stage builds; sample one token for all slots, and make one update.

    Args:
        config: what `buildable` returned.
        rank: of the stage's processes.
        gpu: as in `dry_step.one_rank`.
    """
    with one_rank(config.parallel, rank, seed=config.seed, gpu=gpu) as counter:
        with building():
            policy = build_policy(config, config.architecture.vocab_size)
        policy.copy_to_reference()
        trainer = policy.trainer
        cache = _sample(config, policy) if config.engine.name == "megatron" else 0
        answers = texts(config)
        batches = policy.micro_batches(answers)
        policy.compute_reference_logprobs(batches)
        if config.loop.minibatches > 1:
            policy.compute_old_logprobs(batches)
        # The mean ratio of a text needs the number of texts (objective.py).
        with counter.passes(trainer.models), whole_numbers(len(answers)):
            policy.update(batches, config.schedule.lr, 1, accept=counter.passes_end)
        if config.loop.reference_interval:
            policy.soft_update_reference(config.loop.reference_alpha)
        planned = stage_memory(
            config.architecture,
            config.layout,
            reinforcement_workload(config),
            pipeline_stage(rank, config.parallel),
        )
        return counter.report(
            rank,
            config.parallel,
            trainer.models,
            trainer.optimizer,
            planned=planned,
            reference=policy.reference,
            cache=cache,
        )


@torch.no_grad()
def _sample(config: ReinforceConfig, policy: Policy) -> int:
    """One token of every slot at the end of the longest text; returns the bytes of the cache."""
    parallel = config.parallel
    multiple = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    slots = -(-config.slots // multiple) * multiple
    models: list[Any] = [unwrap(model) for model in policy.trainer.models]
    cache = DecodeCache(slots)
    positions = torch.empty(slots, dtype=torch.int64, device=META)
    for model in models:
        install_decode_cache(model)
        model.eval()
        set_decode_cache(model, cache)
    try:
        cache.prepare(Decode(slots, positions, config.context_length), config.context_length)
        pipeline_forward(models, torch.empty(1, slots, dtype=torch.int64, device=META))
    finally:
        for model in models:
            set_decode_cache(model, None)
    return sum(each.untyped_storage().nbytes() for each in cache.held())


def _rows_per_rank(config: ReinforceConfig) -> int:
    """At most one row per answer."""
    loop = config.loop
    return (
        loop.prompts_per_step
        * loop.samples_per_prompt
        // loop.minibatches
        // config.parallel.data_parallel_size
    )
