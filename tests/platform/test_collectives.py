"""What is in the environment before a process uses its GPU, and what is refused there."""

from __future__ import annotations

import os

import pytest

from megatron_prism.errors import ParallelError
from megatron_prism.platform.collectives import (
    CONNECTIONS,
    FLIGHT_RECORDER,
    check_connections,
    prepare_environment,
)


@pytest.fixture(autouse=True)
def environment():
    """The test's own environment, empty of these settings."""
    before = dict(os.environ)
    for name in (CONNECTIONS, *FLIGHT_RECORDER):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_tensor_and_context_parallelism_get_one_connection():
    prepare_environment(model_parallel=False)
    assert CONNECTIONS not in os.environ
    prepare_environment(model_parallel=True)
    assert os.environ[CONNECTIONS] == "1"
    check_connections(True, (9, 0))


def test_the_users_values_stay_and_a_wrong_one_is_refused():
    os.environ[CONNECTIONS] = "8"
    os.environ["TORCH_NCCL_TRACE_BUFFER_SIZE"] = "5"
    prepare_environment(model_parallel=True)
    assert os.environ["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "5"
    with pytest.raises(ParallelError, match=r"CUDA_DEVICE_MAX_CONNECTIONS=8.*unset it"):
        check_connections(True, (9, 0))
    check_connections(True, (10, 0))
    check_connections(False, (9, 0))


def test_a_timeout_leaves_a_record_of_every_rank():
    prepare_environment(model_parallel=False)
    assert FLIGHT_RECORDER.items() <= os.environ.items()
