from __future__ import annotations

import random

import numpy
import torch
from megatron.core import tensor_parallel

from megatron_prism.platform import hardware
from megatron_prism.platform.process_groups import session
from megatron_prism.platform.randomness import random_state, restore_random_state


def test_a_measured_peak_names_how_it_was_measured():
    if hardware.has_gpu():
        return
    top = hardware.peak("fp32")
    assert 1e8 < top.flops_per_second < 1e15
    assert "fp32 matmul" in top.name
    assert str(torch.get_num_threads()) in top.name


def test_receipt_facts_hold_what_a_reader_needs():
    facts, found = hardware.machine_facts(), hardware.versions()
    assert facts["device"]
    assert facts["memory_gib"] > 0
    assert found["megatron-core"] == hardware.package_version("megatron-core")
    assert hardware.package_version("no-such-package") is None
    assert hardware.peak_memory_bytes() > 0


def test_a_restored_random_state_draws_the_same_everywhere():
    def draw() -> list[object]:
        with tensor_parallel.get_cuda_rng_tracker().fork():
            parallel = torch.rand(3).tolist()
        return [random.random(), numpy.random.rand(3).tolist(), torch.rand(3).tolist(), parallel]

    with session(seed=11):
        draw()
        kept = random_state()
        expected = draw()
        assert draw() != expected
        restore_random_state(kept)
        assert draw() == expected
