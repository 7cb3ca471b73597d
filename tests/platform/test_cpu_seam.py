"""Each seam of platform/cpu_seam.py on a machine without CUDA; for seam E also what happens without it."""

from __future__ import annotations

import pytest
import torch
from megatron.core import tensor_parallel

from megatron_prism.models.architecture import Architecture
from megatron_prism.platform import cpu_seam
from megatron_prism.platform.hardware import has_gpu
from megatron_prism.platform.process_groups import ParallelConfig, session
from megatron_prism.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import BatchConfig, Trainer

pytestmark = pytest.mark.skipif(has_gpu(), reason="the seam is not installed where CUDA exists")

TINY = Architecture("granite", 64, 32, 2, 48, 4, 2, 8, max_position_embeddings=32)
LENGTH, STEPS = 16, 6


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


def trainer() -> Trainer:
    return Trainer(
        TINY, ParallelConfig(), BatchConfig(LENGTH, 2, 2), OptimizerSettings(eps=1e-8), dtype=torch.float32
    )


class Samples:
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(64, (LENGTH + 1,), generator=torch.Generator().manual_seed(index % 4))
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": torch.ones(LENGTH),
            "position_ids": torch.arange(LENGTH),
        }


def losses(run: Trainer, first: int, last: int) -> list[float]:
    return [run.step(Samples(), 2 * step, 1e-2)[0] for step in range(first, last)]


@pytest.fixture
def halfway(tmp_path):
    """A checkpoint after half the steps, and the losses of the run that went on."""
    run = trainer()
    losses(run, 0, STEPS)
    save_checkpoint(tmp_path / "half", run.models, run.optimizer, TrainingState(STEPS))
    return tmp_path / "half", losses(run, STEPS, 2 * STEPS)


def test_e_a_resumed_optimizer_goes_on_bit_for_bit(halfway):
    folder, expected = halfway
    run = trainer()
    load_checkpoint(folder, run.models, run.optimizer)
    assert losses(run, STEPS, 2 * STEPS) == expected


def test_e_without_unsharing_the_steps_a_resume_is_silently_wrong(halfway, monkeypatch):
    folder, expected = halfway
    monkeypatch.setattr(cpu_seam, "unshare_adam_steps", lambda optimizer: None)
    run = trainer()
    load_checkpoint(folder, run.models, run.optimizer)
    wrong = losses(run, STEPS, 2 * STEPS)
    # The first loss is of the loaded weights; every later one follows a step with the wrong count.
    assert wrong[0] == expected[0]
    assert wrong[1:] != expected[1:]


def test_e_without_priming_a_load_is_refused(halfway, monkeypatch):
    folder, _ = halfway
    run = trainer()
    monkeypatch.setattr(cpu_seam, "prime_adam_state", lambda optimizer: None)
    with pytest.raises(Exception):  # noqa: B017 (upstream's own: an assertion, a KeyError or ours around it)
        load_checkpoint(folder, run.models, run.optimizer)


def test_nothing_is_patched_where_cuda_exists(monkeypatch):
    monkeypatch.setattr(cpu_seam, "has_gpu", lambda: True)
    monkeypatch.setattr(cpu_seam, "_installed", False)
    before = torch.cuda.current_device, torch.cuda.synchronize
    cpu_seam.install()
    assert (torch.cuda.current_device, torch.cuda.synchronize) == before
    assert not cpu_seam._installed
    with cpu_seam.cuda_requests_on_cpu(), pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2, device="cuda")
