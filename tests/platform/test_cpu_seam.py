"""Each seam of platform/cpu_seam.py on a machine without CUDA."""

from __future__ import annotations

import pytest
import torch
from megatron.core import tensor_parallel

from megatron_prism.platform import cpu_seam
from megatron_prism.platform.hardware import has_gpu
from megatron_prism.platform.process_groups import session

pytestmark = pytest.mark.skipif(has_gpu(), reason="the seam is not installed where CUDA exists")


@pytest.fixture(autouse=True)
def one_process():
    with session(seed=3):
        yield


def test_a_and_b_answer_on_the_cpu():
    assert torch.empty(1, device=torch.cuda.current_device()).device.type == "cpu"
    torch.cuda.synchronize()


def test_c_a_fork_has_its_own_stream_and_leaves_the_outer_one():
    tracker = tensor_parallel.get_cuda_rng_tracker()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with tracker.fork():
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with tracker.fork():
        assert not torch.equal(torch.rand(2), first)
    states = tracker.get_states()
    with tracker.fork():
        here = torch.rand(2)
    tracker.set_states(states)
    with tracker.fork():
        assert torch.equal(torch.rand(2), here)
    with pytest.raises(ValueError, match="exists already"):
        tracker.add("model-parallel-rng", 1)


def test_c_a_failure_inside_a_fork_restores_the_outer_state():
    before = torch.get_rng_state()

    def draw_and_fail():
        with tensor_parallel.get_cuda_rng_tracker().fork():
            torch.rand(1)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_d_literals_mean_the_cpu_inside_the_context_only():
    with cpu_seam.cuda_requests_on_cpu():
        for device in ("cuda", "cuda:0", torch.device("cuda")):
            assert torch.zeros(2, device=device).device.type == "cpu"
        assert not torch.zeros(2, pin_memory=True).is_pinned()
        x = torch.ones(2, dtype=torch.bfloat16)
        assert x.cuda() is x
        # Megatron looks gradients up by their CUDA type name (optimizer.py, clip_grads.py).
        assert x.type() == "torch.cuda.BFloat16Tensor"
        assert x.type(torch.float32).dtype is torch.float32
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2, device="cuda")


def test_nothing_is_patched_where_cuda_exists(monkeypatch):
    monkeypatch.setattr(cpu_seam, "has_gpu", lambda: True)
    monkeypatch.setattr(cpu_seam, "_installed", False)
    before = torch.cuda.current_device, torch.cuda.synchronize
    cpu_seam.install()
    assert (torch.cuda.current_device, torch.cuda.synchronize) == before
    assert not cpu_seam._installed
    with cpu_seam.cuda_requests_on_cpu(), pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2, device="cuda")
