"""Identity is what changes the result in exact arithmetic; a layout, a cadence or a batch of workers is not."""

from __future__ import annotations

import pytest

from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.config import apply_overrides
from megatron_prism.rl.difficulty import Difficulty
from megatron_prism.rl.stage import Reinforce
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.stage import Train

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)
STAGES = {
    "train": Train(TINY, "shoebox-mcs", batch=BatchConfig(32, 2, 8)),
    "rl": Reinforce(TINY, context_length=64),
    "evaluation": Evaluate(),
    "difficulty": Difficulty(),
}
LAYOUT = {
    "parallel.tensor_model_parallel_size": 2,
    "parallel.pipeline_model_parallel_size": 2,
    "parallel.data_parallel_size": 2,
    "parallel.context_parallel_size": 2,
    "parallel.use_distributed_optimizer": False,
    "recompute": "full",
}
TUNING = {
    "train": LAYOUT
    | {
        "batch.micro_batch_size": 4,
        "backend": "torch",
        "validate_every": 7,
        "validation_batches": 9,
        "checkpoint_every": 3,
        "log_every": 5,
    },
    "rl": LAYOUT
    | {
        "micro_batch_size": 3,
        "packing": False,
        "slots": 17,
        "evaluate_every": 3,
        "answers_every": 4,
        "checkpoint_every": 5,
        "checkpoints.weights_every": 20,
        "grading.workers": 5,
    },
    "evaluation": {"batch_size": 5, "grading.workers": 5},
    "difficulty": {"slots": 5, "grading.workers": 5},
}
IDENTITY = {
    "train": {
        "architecture.num_layers": 4,
        "mixture": "shoebox-base",
        "steps": 101,
        "seed": 2,
        "dtype": "bf16",
        "trainable": "attention",
        "batch.sequence_length": 64,
        "batch.global_batch_size": 16,
        "schedule.lr": 1e-3,
        "schedule.warmup_steps": 3,
        "optimizer.beta2": 0.99,
    },
    "rl": {
        "steps": 7,
        "seed": 2,
        "dtype": "bf16",
        "loop.prompts_per_step": 8,
        "objective.kl_coefficient": 0.0,
        "schedule.lr": 1e-3,
        "context_length": 32,
        "max_new_tokens": 9,
        "grading.timeout_seconds": 9.0,
    },
    "evaluation": {"limit": 5, "sampling.seed": 5},
    # The seeds of the answers follow from the chunk and the place in it.
    "difficulty": {"samples": 5, "chunk": 5},
}


@pytest.mark.parametrize("name", STAGES)
def test_what_shares_the_work_out_is_not_identity(name):
    stage = STAGES[name]
    for key, value in TUNING[name].items():
        changed = apply_overrides(stage, {key: value})
        assert changed != stage, key
        assert changed.fingerprint({}) == stage.fingerprint({}), key


@pytest.mark.parametrize("name", STAGES)
def test_what_changes_the_result_is(name):
    stage = STAGES[name]
    found = {stage.fingerprint({})}
    for key, value in IDENTITY[name].items():
        found.add(apply_overrides(stage, {key: value}).fingerprint({}))
    assert len(found) == len(IDENTITY[name]) + 1


def test_fp8_is_identity_and_the_layout_that_lost_a_node_is_not():
    """The case of a run on 128 GPUs that goes on with 64, and with half the micro-batch."""
    stage = apply_overrides(STAGES["train"], {"dtype": "bf16", "parallel.data_parallel_size": 4})
    smaller = apply_overrides(stage, {"parallel.data_parallel_size": 2, "batch.micro_batch_size": 1})
    assert smaller.fingerprint({"tokens": "a"}) == stage.fingerprint({"tokens": "a"})
    assert smaller.fingerprint({"tokens": "b"}) != stage.fingerprint({"tokens": "a"})
    assert apply_overrides(stage, {"fp8": "hybrid"}).fingerprint({}) != stage.fingerprint({})
