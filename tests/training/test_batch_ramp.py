"""The batch-size ramp: Megatron's sizes, exact counts of samples and tokens, and a resumed run like an unbroken."""

from __future__ import annotations

import json

import pytest
from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig, BatchRamp
from megatron_prism.training.data_settings import DataSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.training.trainer import Trainer

TINY = Architecture("granite", 700, 32, 2, 48, 4, 2, 8, max_position_embeddings=64)
SIZES = [2, 2, 4, 6, 6]


@pytest.mark.parametrize(
    ("start", "increment", "samples", "size"),
    [(4, 4, 100, 16), (2, 2, 7, 12), (8, 24, 50, 32), (1, 1, 999, 64)],
)
def test_the_sizes_of_megatrons_calculator(start, increment, samples, size):
    batch = BatchConfig(32, 1, size, BatchRamp(start, increment, samples))
    upstream = RampupBatchsizeNumMicroBatchesCalculator(size, 1, 1, False, 0, start, increment, samples)
    consumed = 0
    for step in range(80):
        upstream.update(consumed, consistency_check=True)
        assert batch.size_after(consumed) == upstream.get_current_global_batch_size()
        assert batch.samples(step) == consumed
        consumed += batch.size_after(consumed)
    assert batch.size_after(consumed) == size


def test_a_ramp_that_misses_its_end_or_a_layout_is_refused():
    for start, increment in ((8, 3), (16, 4), (20, 4)):
        with pytest.raises(ConfigError, match=r"batch\.ramp: .*global_batch_size=16"):
            BatchConfig(32, 1, 16, BatchRamp(start, increment, 100))
    with pytest.raises(ConfigError, match="samples"):
        BatchRamp(1, 1, 0)
    batch = BatchConfig(32, 2, 16, BatchRamp(4, 6, 100))
    batch.check_layout(ParallelConfig())
    # The batch sizes are 4, 10, 16: the second is not a multiple of 2 x 2.
    with pytest.raises(ParallelError, match=r"batch\.ramp: a batch size of 10 is not a multiple"):
        batch.check_layout(ParallelConfig(data_parallel_size=2))


def stage(**changes):
    fields = {
        "architecture": TINY,
        "mixture": "shoebox-mcs",
        "steps": len(SIZES),
        "batch": BatchConfig(32, 2, 6, BatchRamp(2, 2, 7)),
        "schedule": Schedule(lr=1e-2),
        "validation_batches": 1,
        "checkpoint_every": 2,
    }
    return Train(**(fields | changes))


def records(folder):
    keys = ("step", "loss", "grad_norm", "consumed_tokens", "validation")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in keys if key in line} for line in lines]


def test_a_resumed_ramp_is_the_unbroken_one(inputs, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    metrics = stage().run(inputs, whole)
    steps = [line for line in records(whole) if "loss" in line]
    assert [line["consumed_tokens"] for line in steps] == [
        32 * sum(SIZES[: number + 1]) for number in range(len(SIZES))
    ]
    assert metrics["tokens"] == 32 * sum(SIZES)

    honest = Trainer.step

    def fails_in_step_four(*arguments):
        if len(records(broken)) == 3:
            raise OSError("killed")
        return honest(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", fails_in_step_four)
        with pytest.raises(OSError, match="killed"):
            stage().run(inputs, broken)
    # Read ahead or not: the same bits.
    stage(data=DataSettings(prefetch=0)).run(inputs, broken)
    assert records(broken) == records(whole)
