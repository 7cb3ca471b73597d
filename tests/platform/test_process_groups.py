from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.trainer import BatchConfig


def test_the_world_is_the_product_and_a_wrong_one_is_named():
    sizes = ParallelConfig(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=3,
        context_parallel_size=2,
        data_parallel_size=2,
    )
    assert sizes.world_size == 24
    sizes.check_world(24)
    with pytest.raises(
        ParallelError, match=r"tensor 2 x pipeline 3 x context 2 x data 2 = 24 .* 8 are running"
    ):
        sizes.check_world(8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor_model_parallel_size": 0}, "tensor_model_parallel_size=0: must be 1 or more"),
        ({"context_parallel_size": -1}, "context_parallel_size=-1"),
        ({"sequence_parallel": True}, "needs tensor_model_parallel_size > 1"),
        ({"virtual_pipeline_model_parallel_size": 2}, "pipeline_model_parallel_size of at least 2"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ParallelError, match=message):
        ParallelConfig(**sizes)


def test_a_sequence_that_cannot_be_cut_is_named():
    ParallelConfig(context_parallel_size=2).check_sequence(8)
    with pytest.raises(ParallelError, match="sequence_length=6 cannot be split into 4 equal parts"):
        ParallelConfig(context_parallel_size=2).check_sequence(6)
    sizes = ParallelConfig(context_parallel_size=2, tensor_model_parallel_size=2, sequence_parallel=True)
    with pytest.raises(ParallelError, match="into 8 equal parts"):
        sizes.check_sequence(12)


def test_a_batch_that_cannot_be_shared_is_named():
    assert BatchConfig(8, 2, 12).micro_batches(ParallelConfig(data_parallel_size=3)) == 2
    with pytest.raises(
        ParallelError, match=r"global_batch_size=12 .* micro_batch_size=2 x data_parallel_size=4"
    ):
        BatchConfig(8, 2, 12).micro_batches(ParallelConfig(data_parallel_size=4))
    interleaved = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    assert BatchConfig(8, 2, 8).micro_batches(interleaved) == 4
    with pytest.raises(ParallelError, match="3 micro-batches per step are not a multiple of pipeline"):
        BatchConfig(8, 2, 6).micro_batches(interleaved)


HYBRID = Architecture(
    "nemotron_h", 64, 32, 4, 48, 4, 2, 8, activation="squared_relu", position_embedding="none",
    hybrid_pattern="M-M*", mamba_num_heads=4, mamba_head_dim=8, mamba_state_dim=8, mamba_num_groups=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"tensor_model_parallel_size": 2}, "mamba_num_groups=1; use context_parallel_size, pipeline"),
        (
            {"pipeline_model_parallel_size": 3},
            "num_layers=4: 4 layers cannot be shared evenly by 3 pipeline stages",
        ),
        ({"context_parallel_size": 8}, "mamba_num_heads=4 is not divisible by 8"),
        (
            {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
            "hybrid models have no virtual pipeline stages",
        ),
    ],
)
def test_an_architecture_that_does_not_divide_is_named(sizes, named):
    with pytest.raises(ParallelError, match=named):
        HYBRID.check_parallel(ParallelConfig(**sizes))


def test_tensor_parallelism_that_does_not_divide_the_groups_names_what_does():
    grouped = replace(HYBRID, mamba_num_groups=4)
    with pytest.raises(ParallelError, match="num_query_groups=2 is not divisible by 4"):
        grouped.check_parallel(ParallelConfig(tensor_model_parallel_size=4))
    with pytest.raises(
        ParallelError, match="mamba_num_groups=2; use tensor_model_parallel_size=2, or context"
    ):
        replace(HYBRID, mamba_num_groups=2).check_parallel(ParallelConfig(tensor_model_parallel_size=4))


def test_a_session_starts_and_ends_everything_and_nests():
    assert not dist.is_initialized()
    with session(seed=4):
        drawn = torch.rand(2)
        assert parallel_state.get_tensor_model_parallel_world_size() == 1
        with session(ParallelConfig(tensor_model_parallel_size=8)):
            # Inside another session nothing is set up, so nothing is checked.
            assert dist.get_world_size() == 1
        assert parallel_state.model_parallel_is_initialized()
    assert not dist.is_initialized()
    assert not parallel_state.model_parallel_is_initialized()
    with session(seed=4):
        assert torch.equal(torch.rand(2), drawn)


def test_a_session_checks_the_number_of_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(ParallelError, match="= 2 processes, but 3 are running"),
        session(ParallelConfig(data_parallel_size=2)),
    ):
        pass
    assert not dist.is_initialized()
